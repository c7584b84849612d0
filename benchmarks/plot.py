"""Plots the ratios in RESULTS.md as `results.svg`, in the same folder: `python -m benchmarks.plot`."""

import re

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from .harness import RESULTS

Ratio = tuple[str, str, float]
"""A table's title and the row's name, the peer, and our time divided by the peer's."""


def ratios(text: str) -> list[Ratio]:
    """Returns every ratio in the tables of RESULTS.md, in order.

    >>> ratios("## Step" + chr(10) + "| work | ours / optax |" + chr(10) + "|---|---|" + chr(10) + "| adam | 0.50 |")
    [('Step: adam', 'optax', 0.5)]
    """
    found = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, *lines = section.splitlines()
        header, _, *rows = [cells(line) for line in lines if line.startswith("|")]
        for row in rows:
            work = title if is_number(row[0]) else f"{title}: {row[0]}"
            for name, cell in zip(header, row, strict=True):
                if (name.startswith("ours / ") or name == "ratio") and is_number(cell):
                    found.append((work, name.removeprefix("ours / "), float(cell)))
    return found


def is_number(cell: str) -> bool:
    return re.fullmatch(r"[\d.]+", cell) is not None


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|\n ").split("|")]


def main() -> None:
    plt.rcParams.update({"svg.hashsalt": "results", "svg.fonttype": "none"})
    found = ratios(RESULTS.read_text())
    works, peers = list(dict.fromkeys(w for w, _, _ in found)), list(dict.fromkeys(p for _, p, _ in found))
    figure, axes = plt.subplots(figsize=(10, 1 + 0.28 * len(works)), layout="constrained")
    for i, peer in enumerate(peers):
        points = [(x, works.index(work)) for work, p, x in found if p == peer]
        label = "the row's other column" if peer == "ratio" else peer
        axes.plot(*zip(*points, strict=True), "os^Dv*"[i % 6], label=label)
    axes.axvline(1, color="grey", linewidth=1)
    axes.set(
        xscale="log", xlabel="our time / the peer's: left of the line we are faster", ylim=(len(works) - 0.5, -0.5)
    )
    axes.set_yticks(range(len(works)), works, fontsize=8)
    axes.grid(axis="x", which="both", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=len(peers), fontsize=8, title="the peer", title_fontsize=8)
    figure.savefig(RESULTS.with_name("results.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
