"""The main example: learns handwritten digits in three ways and sweeps the rate; makes a table and a picture."""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import composed
import functional
import jax
import keras_script
import matplotlib.pyplot as plt
import numpy as np
import sweep
import task
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

WAYS = {  # the training function of each, and the name of the function that it compiles
    "functional": (functional.train, "step"),
    "composed": (composed.train, "step"),
    "keras script": (keras_script.train, "program"),
    "sweep of 8 rates": (sweep.sweep, "train"),
}
compiled: list[str] = []


@jax.monitoring.register_event_duration_secs_listener
def note_compilation(event: str, _: float, fun_name: str = "", **__) -> None:
    if event.endswith("backend_compile_duration"):
        compiled.append(fun_name)


def main(epochs: int, out: Path, console: Console) -> tuple[dict, dict]:
    """Runs all four. Returns the test accuracies and the loss curves by name."""
    digits = task.Digits.load()
    batches = digits.batches(epochs)
    accuracies, curves = {}, {}
    table = Table("", "test accuracy", "seconds", "compiles of the step", title=f"digits, {len(batches)} steps")
    with Progress(console=console) as progress:
        for name, (train, step) in WAYS.items():
            before, start = len(compiled), time.perf_counter()
            params, losses = train(shown(progress, f"{name:18}", batches))
            curves[name] = np.array(losses)
            seconds = time.perf_counter() - start
            if name.startswith("sweep"):  # a network for each rate
                networks = [jax.tree.map(lambda x, i=i: x[i], params) for i in range(len(sweep.RATES))]
                accuracies[name] = max(task.accuracy(network, *digits.test) for network in networks)
            else:
                accuracies[name] = task.accuracy(params, *digits.test)
            compiles = compiled[before:].count(f"jit({step})")
            table.add_row(name, f"{accuracies[name]:.1%}", f"{seconds:.2f}", str(compiles))
    console.print(table)
    apart = np.abs(curves["functional"] - curves["keras script"]).max()
    console.print(f"functional and keras script use the same Adam: their losses differ by at most {apart:.1e}")
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(curves, out)
    console.print(f"picture: {out}")
    return accuracies, curves


def shown(progress: Progress, name: str, batches: list) -> Iterator:
    """Yields the batches and shows how many are done.

    `rich.progress.track` would start a thread that a failed run leaves waiting: Python 3.13 would never exit.
    """
    row = progress.add_task(name, total=len(batches))
    for batch in batches:
        yield batch
        progress.advance(row)


def draw(curves: dict[str, np.ndarray], out: Path) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    styles = {"functional": "-", "composed": "-", "keras script": "--"}
    for name, style in styles.items():
        left.semilogy(smooth(curves[name]), style, label=name)
    left.set(title="training loss, mean of 20 steps", xlabel="step")
    left.legend()
    steps = np.arange(len(curves["composed"]))
    middle.plot(steps, composed.schedule(steps))
    middle.set(title="learning rate of the composed chain", xlabel="step")
    for rate, losses in zip(sweep.RATES, curves["sweep of 8 rates"], strict=True):
        right.semilogy(
            smooth(losses), color=plt.get_cmap("viridis")(np.log10(rate / 1e-4) / 3.5), label=f"{rate:.4f}"
        )
    right.set(title="sweep of the learning rate, one compilation", xlabel="step")
    right.legend(fontsize="small", title="learning rate", loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(out, dpi=120)
    plt.close(figure)


def smooth(losses: np.ndarray, width: int = 20) -> np.ndarray:
    width = min(width, len(losses))
    return np.convolve(losses, np.ones(width) / width, mode="valid")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("out/digits.png"))
    arguments = parser.parse_args()
    plt.switch_backend("Agg")
    main(arguments.epochs, arguments.out, Console())
