"""Times one jitted, donated update step against Optax's and torch's fused one: `python -m benchmarks.step`."""

import argparse
import math
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch

import functional_opt
from functional_opt import native

from .harness import interleave, report
from .shapes import Shapes, transformer


def contender(
    library: ModuleType, tx: Any, shapes: Shapes, by_xla: bool = False, steps: int = 1
) -> Callable[[], None]:
    """Returns a function that runs some steps and waits for the last. `by_xla` turns the native kernels off.

    library: whose `apply_updates` adds the updates.
    """
    step, carry, grads = stepper(library, tx, shapes, by_xla)

    def run():
        nonlocal carry
        for _ in range(steps):
            carry = step(*carry, grads)
        jax.block_until_ready(carry)

    return run


def stepper(library: ModuleType, tx: Any, shapes: Shapes, by_xla: bool = False) -> tuple[Any, tuple, dict]:
    """Returns a compiled step, (params, state), which it donates, and gradients."""

    def update(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return library.apply_updates(params, updates), state

    step = jax.jit(update, donate_argnums=(0, 1))
    params = {name: jnp.full(shape, 0.01) for name, shape in shapes.items()}
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape), params)
    carry = params, tx.init(params)
    with native.disabled() if by_xla else nullcontext():  # read in tracing, which happens twice: types are weak first
        carry = step(*step(*carry, grads), grads)
    return step, carry, grads


def sum_in_place(shapes: Shapes) -> Callable[[], None]:
    """Returns torch's x ← x + y, 12 bytes per element: a rate that memory is known to reach."""
    x, y = ([torch.ones(shape) for shape in shapes.values()] for _ in range(2))
    return lambda: torch._foreach_add_(x, y)


def fused(
    make: Callable, max_norm: float | None, shapes: Shapes, steps: int = 1, device: str = "cpu"
) -> Callable[[], None]:
    """Returns some fused steps of torch. Gradients are clipped in place, as torch does, so they shrink only once."""
    params = [torch.nn.Parameter(torch.full(shape, 0.01, device=device)) for shape in shapes.values()]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = make(params)

    def run():
        for _ in range(steps):
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_(params, max_norm)
            optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def chains(library: ModuleType) -> dict[str, Any]:
    """Returns the same optimizers from either library, by name."""
    return {
        "adam": library.adam(1e-3),
        "clip + adamw": library.chain(library.clip_by_global_norm(1.0), library.adamw(1e-3)),
        "sgd, momentum": library.sgd(1e-3, momentum=0.9),
        "lion": library.lion(1e-3),
    }


def others(library: ModuleType) -> dict[str, Any]:
    """Returns other optimizers that have a kernel, from either library, by name."""
    contrib = library.contrib
    return {
        "amsgrad": library.amsgrad(1e-3),
        "adamax": library.adamax(1e-3),
        "adabelief": library.adabelief(1e-3),
        "nadamw": library.nadamw(1e-3),
        "radam": library.radam(1e-3),
        "yogi": library.yogi(1e-3),
        "adan": library.adan(1e-3),
        "ademamix": contrib.ademamix(1e-3),
        "simplified ademamix": contrib.simplified_ademamix(1e-3),
        "adopt": contrib.adopt(1e-3),
        "adadelta": library.adadelta(1e-3),
        "adagrad": library.adagrad(1e-3),
        "rmsprop": library.rmsprop(1e-3),
        "schedule-free adamw": contrib.schedule_free_adamw(1e-3),
    }


TORCH = {
    "adam": (lambda params: torch.optim.Adam(params, 1e-3, fused=True), None),
    "clip + adamw": (lambda params: torch.optim.AdamW(params, 1e-3, weight_decay=1e-4, fused=True), 1.0),
    "sgd, momentum": (lambda params: torch.optim.SGD(params, 1e-3, momentum=0.9, fused=True), None),
}

SIZES = {
    "33.5M parameters in 2 leaves": {str(i): (4096, 4096) for i in range(2)},
    "42.5M parameters in 148 leaves": transformer(width=512, words=8192, places=1024),
    "4.2M parameters in 148 leaves": {str(i): (168, 168) for i in range(148)},
}


def gigabytes(each: int, shapes: Shapes) -> float:
    """Returns the total size, in GB, at `each` bytes per element."""
    return each * sum(math.prod(shape) for shape in shapes.values()) / 1e9


def main(rounds: int, repeats: int) -> None:
    rows, notes = [], ["torch: its fused optimizers, after `clip_grad_norm_` if the chain clips."]
    for size, shapes in SIZES.items():
        ours, theirs = chains(functional_opt), chains(optax)
        for name in ours:
            contenders = {
                "ours": contender(functional_opt, ours[name], shapes),
                "by XLA": contender(functional_opt, ours[name], shapes, by_xla=True),
                "optax": contender(optax, theirs[name], shapes),
                **({"torch": fused(*TORCH[name], shapes)} if name in TORCH else {}),
            }
            if name == "adam":
                contenders["memory"] = sum_in_place(shapes)
            seconds = interleave(contenders, rounds, name, repeats=repeats)
            rows.append((f"{name}, {size}", seconds))
            rows.append((f"{name}, {size}, no kernel", seconds | {"ours": seconds["by XLA"]}))
            if name == "adam":
                rate = gigabytes(28, shapes) / seconds["ours"]
                least = gigabytes(12, shapes) / seconds["memory"]
                notes.append(f"Adam, {size}: {rate:.0f} GB/s, 28 bytes a parameter; torch's x + y: {least:.0f} GB/s.")
    report("Update step, CPU", rows, ["optax", "torch"], rounds, notes, repeats)


def main_of_added(rounds: int, repeats: int) -> None:
    rows = []
    for size, shapes in list(SIZES.items())[:2]:
        ours, theirs = chains(functional_opt), chains(optax)
        for name in ours:
            contenders = {
                "ours": contender(optax, ours[name], shapes),
                "optax": contender(optax, theirs[name], shapes),
            }
            contenders["by us"] = contender(functional_opt, ours[name], shapes)
            seconds = interleave(contenders, rounds, name, repeats=repeats)
            rows.append((f"{name}, {size}, added by Optax", seconds))
            rows.append((f"{name}, {size}, added by us", seconds | {"ours": seconds["by us"]}))
    notes = ["Our updates, which `optax.apply_updates` or ours adds to the params."]
    report("Updates that Optax adds, CPU", rows, ["optax"], rounds, notes, repeats)


def main_of_others(rounds: int, repeats: int) -> None:
    rows = []
    for size, shapes in list(SIZES.items())[:2]:
        ours, theirs = others(functional_opt), others(optax)
        for name in ours:
            contenders = {
                "ours": contender(functional_opt, ours[name], shapes),
                "by XLA": contender(functional_opt, ours[name], shapes, by_xla=True),
                "optax": contender(optax, theirs[name], shapes),
            }
            seconds = interleave(contenders, rounds, name, repeats=repeats)
            rows.append((f"{name}, {size}", seconds))
            rows.append((f"{name}, {size}, no kernel", seconds | {"ours": seconds["by XLA"]}))
    report("Other rules, CPU", rows, ["optax"], rounds, repeats=repeats)


MINI_STEPS = 4


def wrapped(library: ModuleType, mean: Callable[[], Any]) -> dict[str, tuple[Any, int]]:
    """Returns what wraps or ends a chain from either library, and how many steps to time, by name.

    mean: makes the link that keeps a running mean of the params.
    """
    clipped = library.chain(library.clip_by_global_norm(1.0), library.adamw(1e-3))
    return {
        "adam, mean of 4 gradients": (library.MultiSteps(library.adam(1e-3), MINI_STEPS), MINI_STEPS),
        "clip + adamw, mean of 4 gradients": (library.MultiSteps(clipped, MINI_STEPS), MINI_STEPS),
        "adam if finite": (library.apply_if_finite(library.adam(1e-3), 5), 1),
        "adam, mean of the params": (library.chain(library.adam(1e-3), mean()), 1),
    }


def mean_by_optax() -> optax.GradientTransformation:
    """Returns the link that a user of Optax writes, which has `incremental_update` and no transformation for it."""

    def update(updates, mean, params):
        return updates, optax.incremental_update(optax.apply_updates(params, updates), mean, 1e-3)

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.copy, params), update)


def main_of_wrapped(rounds: int, repeats: int) -> None:
    rows = []
    for size, shapes in list(SIZES.items())[:2]:
        ours = wrapped(functional_opt, lambda: functional_opt.params_ema(0.999, debias=False))
        theirs = wrapped(optax, mean_by_optax)
        for name, (tx, steps) in ours.items():
            contenders = {
                "ours": contender(functional_opt, tx, shapes, steps=steps),
                "by XLA": contender(functional_opt, tx, shapes, by_xla=True, steps=steps),
                "optax": contender(optax, theirs[name][0], shapes, steps=steps),
            }
            seconds = interleave(contenders, rounds, name, repeats=repeats)
            seconds = {library: s / steps for library, s in seconds.items()}
            rows.append((f"{name}, {size}", seconds))
            rows.append((f"{name}, {size}, no kernel", seconds | {"ours": seconds["by XLA"]}))
    notes = ["A mean of gradients: the time of one of 4 steps, of which the last updates."]
    report("Wrapped and extended chains, CPU", rows, ["optax"], rounds, notes, repeats)


TABLES = {"usual": main, "added": main_of_added, "others": main_of_others, "wrapped": main_of_wrapped}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--repeats", type=int, default=1, help="of which the least median counts, on a busy machine")
    parser.add_argument("--table", choices=TABLES, action="append", help="only this one")
    args = parser.parse_args()
    for table in args.table or TABLES:
        TABLES[table](args.rounds, args.repeats)
