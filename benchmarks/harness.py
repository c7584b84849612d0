"""Interleaved timing: every contender runs once a round, and the medians over rounds are compared."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

RESULTS = Path(__file__).parent / "RESULTS.md"


def interleave(contenders: dict[str, Callable[[], None]], rounds: int, what: str) -> dict[str, float]:
    """The median time of each contender, in seconds; a first round, not counted, warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in track(range(rounds + 1), what):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}


def report(title: str, rows: list[tuple[str, dict[str, float]]], peers: list[str], rounds: int) -> None:
    """Prints the medians with ours as a ratio of the first peer's, and keeps them in RESULTS.md under the title."""
    first, *_ = peers
    columns = ["work", "ours, ms", *(f"{p} {version(p)}, ms" for p in peers), f"ours / {first}"]
    cells = []
    for work, t in rows:
        medians = (f"{t[name] * 1e3:.1f}" for name in ("ours", *peers))
        cells.append([work, *medians, f"{t['ours'] / t[first]:.2f}"])
    table = Table(*columns, title=title)
    for row in cells:
        table.add_row(*row)
    Console().print(table)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    software = f"Python {platform.python_version()}, jax {version('jax')}"
    lines = [
        f"## {title}",
        "",
        f"{date.today()}, {machine}, {software}; medians of {rounds} interleaved rounds in one process.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(row)} |" for row in cells),
    ]
    _replace_section(title, "\n".join(lines))


def _replace_section(title: str, section: str) -> None:
    text = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    head, *sections = text.split("\n## ")
    kept = [s for s in sections if not s.startswith(title)]
    RESULTS.write_text("\n## ".join([head.rstrip() + "\n", *(s.rstrip() + "\n" for s in kept), section[3:] + "\n"]))
