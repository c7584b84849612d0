"""Eleven optimizers on a character transformer, tuned with equal effort, and their state in five forms."""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import character_model as model
import character_report as report
import jax
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.progress import Progress
from threadpoolctl import threadpool_limits

import functional_opt as fo

BATCH, POINTS = 8, 8


def cosine(rate: float, steps: int) -> Any:
    return fo.warmup_cosine_decay_schedule(0.0, rate, max(steps // 10, 1), steps)


def flat(rate: float, steps: int) -> Any:
    return fo.warmup_constant_schedule(0.0, rate, max(steps // 10, 1))


class Entry(NamedTuple):
    """An optimizer to compare.

    `usual` is a typical learning rate. `make` takes a schedule and returns the optimizer; `schedule` takes a rate and
    the number of steps and returns the schedule.
    """

    usual: float
    make: Callable
    schedule: Callable = cosine

    def __call__(self, rate: float, steps: int, precision: str = "float32") -> Any:
        return PRECISIONS[precision](self.make, self.schedule(rate, steps))


ADAM_S = {"embedding*": False, "positions*": False, "head*": False}  # matrices that Muon leaves to AdamW
OPTIMIZERS = {
    "adamw": Entry(3e-3, fo.adamw),
    "sgd (momentum)": Entry(0.1, partial(fo.sgd, momentum=0.9)),
    "lion": Entry(3e-4, fo.lion),
    "lamb": Entry(1e-2, fo.lamb),
    "mars": Entry(3e-3, fo.mars),
    "schedule_free_adamw": Entry(3e-3, fo.schedule_free_adamw, flat),
    "muon": Entry(3e-3, partial(fo.muon, consistent_rms=0.2, muon_mask=ADAM_S)),
    "muonh": Entry(2e-2, partial(fo.muonh, matrix_mask=ADAM_S)),  # relative to the norms of matrices
    "soap": Entry(3e-3, partial(fo.soap, max_precond_dim=128)),
    "kl_soap": Entry(3e-3, partial(fo.kl_soap, max_precond_dim=128)),
    "snoo (adamw)": Entry(3e-3, lambda rate: fo.snoo(fo.adamw(rate))),
}
PRECISIONS: dict[str, Callable] = {
    "float32": lambda make, rate: make(rate),
    "bfloat16": lambda make, rate: make(rate, state_dtype="bfloat16"),
    "8 bits": lambda make, rate: fo.quantize_state(make(rate), bits=8),
    "8 bits, companded": lambda make, rate: fo.quantize_state(make(rate), code="companded"),  # FlashOptim's
    "4 bits": lambda make, rate: fo.quantize_state(make(rate), bits=4),
}
QUICK: dict[str, Any] = {"steps": 8, "rates": 2, "seeds": 2, "names": ("adamw", "schedule_free_adamw")}
QUICK |= {"precise": ("adamw",), "precisions": ("float32", "8 bits"), "windows": 8}


@jax.jit
def train(tx, params, batches, held_out):
    """Returns the validation losses of a run, one per stretch of batches. `tx` is data: no rate recompiles this."""

    def step(carry, windows):
        params, state = carry
        updates, state = tx.update(jax.grad(model.loss)(params, windows), state, params)
        return (fo.apply_updates(params, updates), state), None

    def stretch(carry, batches):
        (params, state), _ = jax.lax.scan(step, carry, batches)
        return (params, state), model.loss(fo.eval_params(state, params), held_out)

    return jax.lax.scan(stretch, (params, tx.init(params)), batches)[1]


def main(
    out: Path,
    console: Console,
    steps: int = 200,
    rates: int = 5,
    seeds: int = 5,
    names: tuple[str, ...] = tuple(OPTIMIZERS),
    precise: tuple[str, ...] = ("adamw", "lion"),
    precisions: tuple[str, ...] = tuple(PRECISIONS),
    windows: int = 96,
) -> tuple[dict[str, report.Result], dict[str, dict[str, report.Result]]]:
    """Tunes and runs all, with `windows` to validate on. Returns results by name, and by name and precision."""
    text, held_out, characters = model.load(windows)
    params = model.init(0, characters)
    n_params = sum(x.size for x in jax.tree.leaves(params))
    console.print(
        f"{n_params:,} params, {len(text):,} characters to train on, {held_out[:, 1:].size:,} to validate on; "
        f"every run: {steps} steps of {BATCH * model.CONTEXT} characters"
    )
    runs = len(names) * (rates + seeds) + len(precise) * (len(precisions) - 1) * seeds
    with Progress(console=console) as progress, threadpool_limits(1, "blas"):  # SOAP's matrices are small
        bar = progress.add_task("", total=runs)

        def run(tx, seed: int) -> np.ndarray:
            batches = model.batches(seed, text, BATCH, steps)
            stretches = batches.reshape(POINTS, steps // POINTS, *batches.shape[1:])
            losses = np.asarray(train(tx, model.init(seed, characters), stretches, held_out))
            progress.advance(bar)
            return losses

        def measure(tx, grid: dict[float, float]) -> report.Result:
            curves, seconds = [], []
            for seed in range(1, seeds + 1):  # seed 0 was for tuning
                start = time.perf_counter()
                curves.append(run(tx, seed))
                seconds.append(time.perf_counter() - start)
            slots = jax.tree.leaves(jax.eval_shape(tx.init, params))
            state_bytes = sum(x.size * x.dtype.itemsize for x in slots) / n_params
            return report.Result(grid, np.array(curves), 1e3 * float(np.median(seconds)) / steps, state_bytes)

        results = {}
        for name in names:
            progress.update(bar, description=f"{name:20}")
            entry = OPTIMIZERS[name]
            tried = [entry.usual * 3.0 ** (i - 1) for i in range(rates)]
            grid = {rate: float(run(entry(rate, steps), seed=0)[-1]) for rate in tried}
            results[name] = measure(entry(report.best(grid), steps), grid)
        by_precision = {name: {"float32": results[name]} for name in precise}
        for name, kinds in by_precision.items():
            for precision in precisions[1:]:
                progress.update(bar, description=f"{name + ', ' + precision:20}")
                exact = results[name]
                kinds[precision] = measure(OPTIMIZERS[name](exact.rate, steps, precision), exact.grid)
    report.compare(results, console, steps)
    for name, kinds in by_precision.items():
        report.compare_precisions(name, kinds, console)
    out.parent.mkdir(parents=True, exist_ok=True)
    report.draw(results, by_precision, steps, out)
    console.print(f"picture: {out}")
    return results, by_precision


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="run two optimizers for a few steps, as a check")
    parser.add_argument("--out", type=Path, default=Path("out/characters.png"))
    arguments = parser.parse_args()
    plt.switch_backend("Agg")
    main(arguments.out, Console(), **(QUICK if arguments.quick else {}))
