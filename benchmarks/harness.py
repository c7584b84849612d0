"""Interleaved timing: every contender runs once per round, and the medians over rounds are compared."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

RESULTS = Path(__file__).parent / "RESULTS.md"


def interleave(contenders: dict[str, Callable[[], None]], rounds: int, what: str, calls: int = 1) -> dict[str, float]:
    """Returns the median time per call of each contender, in seconds, over rounds of `calls` calls each.

    A first round warms up and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with Progress() as progress:
        row = progress.add_task(what, total=rounds + 1)
        for i in range(rounds + 1):
            for name, run in contenders.items():
                start = time.perf_counter()
                for _ in range(calls):
                    run()
                if i:
                    seconds[name].append((time.perf_counter() - start) / calls)
            progress.advance(row)
    return {name: statistics.median(s) for name, s in seconds.items()}


def report(
    title: str, rows: list[tuple[str, dict[str, float]]], peers: list[str], rounds: int, notes: Sequence[str] = ()
) -> None:
    """Writes a table of medians, with the ratio of ours to each peer's. A peer may be missing in a row."""
    columns = ["work", "ours, ms", *(c for p in peers for c in (f"{p} {version(p)}, ms", f"ours / {p}"))]
    cells = []
    for work, t in rows:
        against = (
            c for p in peers for c in ((milliseconds(t[p]), f"{t['ours'] / t[p]:.2f}") if p in t else ("–", "–"))
        )
        cells.append([work, milliseconds(t["ours"]), *against])
    write_table(title, columns, cells, rounds, notes)


def write_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    rounds: int,
    notes: Sequence[str] = (),
    where: str = "in one process",
) -> None:
    """Prints a table, and stores it in RESULTS.md under its title."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table, *notes, sep="\n")
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    software = f"Python {platform.python_version()}, jax {version('jax')}"
    lines = [
        f"## {title}",
        "",
        f"{date.today()}, {machine}, {software}; medians of {rounds} interleaved rounds {where}.",
        *(line for note in notes for line in ("", note)),
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    _replace_section(title, "\n".join(lines))


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}" if seconds > 2e-3 else f"{seconds * 1e3:.2f}"


def _replace_section(title: str, section: str) -> None:
    text = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    head, *sections = text.split("\n## ")
    kept = [s for s in sections if not s.startswith(title)]
    RESULTS.write_text("\n## ".join([head.rstrip() + "\n", *(s.rstrip() + "\n" for s in kept), section[3:] + "\n"]))
