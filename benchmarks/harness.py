"""Interleaved timing: every contender runs once per round, and the medians over rounds are compared."""

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

VECTORS = {"avx512_fp16": "AVX-512 with fp16", "avx512f": "AVX-512", "avx2": "AVX2"}
RESULTS = Path(__file__).parent / "RESULTS.md"


def interleave(
    contenders: dict[str, Callable[[], None]], rounds: int, what: str, calls: int = 1, repeats: int = 1
) -> dict[str, float]:
    """Returns the median time per call of each contender, in seconds, over rounds of `calls` calls each.

    A first round warms up and is not counted. repeats: how many medians are taken, of which the least is returned: on
    a machine that is shared with other jobs.
    """
    if repeats > 1:
        medians = [interleave(contenders, rounds, what, calls) for _ in range(repeats)]
        return {name: min(m[name] for m in medians) for name in contenders}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with Progress() as progress:
        row = progress.add_task(what, total=rounds + 1)
        for i in range(rounds + 1):
            # in another order each time, because what ran before leaves spinning threads and full caches behind
            for name, run in random.Random(i).sample(list(contenders.items()), len(contenders)):
                start = time.perf_counter()
                for _ in range(calls):
                    run()
                if i:
                    seconds[name].append((time.perf_counter() - start) / calls)
            progress.advance(row)
    return {name: statistics.median(s) for name, s in seconds.items()}


def report(
    title: str,
    rows: list[tuple[str, dict[str, float]]],
    peers: list[str],
    rounds: int,
    notes: Sequence[str] = (),
    repeats: int = 1,
) -> None:
    """Writes a table of medians, with the ratio of ours to each peer's. A peer may be missing in a row."""
    columns = ["work", "ours, ms", *(c for p in peers for c in (f"{p} {version(p)}, ms", f"ours / {p}"))]
    cells = []
    for work, t in rows:
        against = (
            c for p in peers for c in ((milliseconds(t[p]), f"{t['ours'] / t[p]:.2f}") if p in t else ("–", "–"))
        )
        cells.append([work, milliseconds(t["ours"]), *against])
    if repeats > 1:
        notes = [f"The least of {repeats} medians each, as the machine was shared with other jobs.", *notes]
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
    machine = f"{processor()}, {os.cpu_count()} cores"
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


def processor() -> str:
    """Returns the name of the processor where Linux tells it, and the widest vectors that kernels may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = dict(line.replace("\t", "").split(": ", 1) for line in reversed(lines) if ": " in line)
    flags = found.get("flags", "").split()
    vectors = next((f" ({name})" for flag, name in VECTORS.items() if flag in flags), "")
    return f"{platform.machine()}, {found['model name']}{vectors}" if "model name" in found else platform.machine()


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}" if seconds > 2e-3 else f"{seconds * 1e3:.2f}"


def _replace_section(title: str, section: str) -> None:
    text = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    head, *sections = text.split("\n## ")
    kept = [s for s in sections if not s.startswith(title)]
    RESULTS.write_text("\n## ".join([head.rstrip() + "\n", *(s.rstrip() + "\n" for s in kept), section[3:] + "\n"]))
