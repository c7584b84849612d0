"""Reports the results of characters.py: tables, the conclusions that they support, and a picture."""

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student


class Result(NamedTuple):
    """The results of one optimizer.

    `grid` maps learning rates to their losses in tuning, and `curves` holds the losses at the best rate, of shape
    (seeds, points). `milliseconds` is the time per step, and `bytes` the size of the state per param.
    """

    grid: dict[float, float]
    curves: np.ndarray
    milliseconds: float
    bytes: float

    @property
    def rate(self) -> float:
        return best(self.grid)

    @property
    def final(self) -> np.ndarray:
        return self.curves[:, -1]


def best(grid: dict[float, float]) -> float:
    return min(grid, key=lambda rate: np.nan_to_num(grid[rate], nan=np.inf))


def interval(x: np.ndarray, comparisons: int = 1) -> np.ndarray:
    """Returns half the width of the 95 % t-interval of the mean over the first axis.

    It is widened so that `comparisons` such intervals hold together (Bonferroni).
    """
    return student.ppf(1 - 0.025 / comparisons, len(x) - 1) * x.std(axis=0, ddof=1) / np.sqrt(len(x))


def compare(results: dict[str, Result], console: Console, steps: int) -> None:
    columns = ("", "best rate", "validation loss", "std", "difference from AdamW", "ms per step", "bytes per param")
    table = Table(*columns, title=f"validation loss after {steps} steps, nats per character")
    others = len(results) - 1
    said: dict[str, list[str]] = {"lower": [], "higher": [], "not significant": []}
    for name, result in sorted(results.items(), key=lambda item: item[1].final.mean()):
        final, less = result.final, result.final - results["adamw"].final
        edge = "*" if result.rate in (min(result.grid), max(result.grid)) else ""
        row = [f"{result.rate:.2g}{edge}", f"{final.mean():.3f} ± {interval(final):.3f}", f"{final.std(ddof=1):.3f}"]
        apart = ""
        if name != "adamw":
            mean, half = less.mean(), interval(less, others)
            apart = f"{mean:+.3f} ± {half:.3f}"
            said["lower" if mean < -half else "higher" if mean > half else "not significant"].append(name)
        table.add_row(name, *row, apart, f"{result.milliseconds:.1f}", f"{result.bytes:.2f}")
    console.print(table)
    seeds, rates = len(results["adamw"].curves), len(results["adamw"].grid)
    console.print(
        f"Means over {seeds} seeds ± 95 % t-intervals. Difference from AdamW: with the same initial params and "
        f"batches; the {others} intervals hold together at 95 % (Bonferroni). Each optimizer was tuned over {rates} "
        "learning rates, a factor of 3 apart, with one run each on a seed used for nothing else; all other arguments "
        "have the library's defaults. * the best rate is at an end of its grid: a better one may lie outside. Bytes "
        "are those of the state; milliseconds include validation, about a tenth."
    )
    for verdict, names in said.items():
        console.print(f"Next to AdamW, {verdict}: {', '.join(names) or 'none'}.")
    console.print("These are short runs of one small model: they say nothing about large ones.")


def compare_precisions(name: str, kinds: dict[str, Result], console: Console) -> None:
    exact = kinds["float32"]
    deviation = exact.final.std(ddof=1)
    columns = (
        "state",
        "validation loss",
        "difference from float32",
        "within 1 std",
        "ms per step",
        "bytes per param",
    )
    table = Table(*columns, title=f"the state of {name}, rate {exact.rate:.2g}")
    for kind, result in kinds.items():
        less = result.final - exact.final
        told = ("", "")
        if result is not exact:
            near = "yes" if abs(less.mean()) <= deviation else "no"
            told = (f"{less.mean():+.4f} ± {interval(less):.4f}", near)
        loss = f"{result.final.mean():.4f} ± {interval(result.final):.4f}"
        table.add_row(kind, loss, *told, f"{result.milliseconds:.1f}", f"{result.bytes:.2f}")
    console.print(table)
    console.print(
        "Difference from float32: mean ± 95 % t-interval, with the same initial params and batches. Within 1 std: "
        f"whether the mean is within ±{deviation:.4f}, the standard deviation of float32's loss over seeds."
    )


def draw(results: dict, by_precision: dict, steps: int, out: Path) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(17, 4.5), layout="constrained")
    points = len(results["adamw"].curves[0])
    at = steps // points * np.arange(1, points + 1)
    for name, result in results.items():
        band(left, at, result.curves, name)
        middle.plot(result.grid.keys(), result.grid.values(), "o-", label=name)
    left.set(title="validation loss, mean and 95 % interval", xlabel="step", ylabel="nats per character")
    left.legend(fontsize="small")
    middle.set(title="tuning: one run for each rate", xlabel="learning rate", xscale="log", ylim=left.get_ylim())
    for name, kinds in by_precision.items():
        exact = kinds["float32"]
        deviation = exact.curves.std(axis=0, ddof=1)
        (line,) = right.plot(at, deviation, ":", label=f"± 1 std of {name} in float32")
        right.plot(at, -deviation, ":", color=line.get_color())
        for kind, result in kinds.items():
            if result is not exact:
                band(right, at, result.curves - exact.curves, f"{name}, {kind}")
    right.set(title="difference from float32, mean and 95 % interval", xlabel="step")
    right.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(out, dpi=120)
    plt.close(figure)


def band(axes: Any, at: np.ndarray, curves: np.ndarray, label: str) -> None:
    mean, half = curves.mean(axis=0), interval(curves)
    (line,) = axes.plot(at, mean, label=label)
    axes.fill_between(at, mean - half, mean + half, color=line.get_color(), alpha=0.2, linewidth=0)
