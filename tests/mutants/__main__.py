"""Shows that the tests notice mistakes: puts each mutant into a copy of the library and runs its tests.

python -m tests.mutants [-k SUBSTRING]

Runs all tests of the chosen mutants on the unchanged copy first, and stops if one fails. Prints for each mutant:

- killed: a test fails, or the process crashes;
- LIVED: all tests pass, so one is missing;
- error: the tests cannot be run, are all skipped, or do not end.

Exits with 1 unless all mutants are killed. The environment variable QUICK has flags of XLA for all tests but
those of the kernels, which are about the programs that XLA makes without them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ..native.sanitize.__main__ import compiler
from .cases import MUTANTS
from .mutant import Mutant

ROOT = Path(__file__).parents[2]
COPIED = "functional_opt", "tests", "pyproject.toml", "README.md"
SECONDS = 600
COLOURS = {"killed": "green", "LIVED": "bold red", "error": "bold yellow"}


def copy_to(folder: Path) -> None:
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)
        else:
            shutil.copy2(ROOT / name, folder / name)


def run(folder: Path, *command: str, quick: bool = False) -> subprocess.CompletedProcess:
    """Runs Python there. Writes no bytecode, which would outlive a mutant; hypothesis draws the same every time."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {os.environ.get('QUICK', '') if quick else ''}".strip()
    own = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "CI": "1", "XLA_FLAGS": flags}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )


def run_tests(folder: Path, node_ids: Iterable[str]) -> list[subprocess.CompletedProcess]:
    """Runs the tests, those of the kernels in a process of their own. Returns the processes."""
    kinds: dict[bool, list[str]] = {}
    for node in dict.fromkeys(node_ids):
        kinds.setdefault(not node.startswith("tests/native"), []).append(node)
    return [
        run(folder, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *nodes, quick=quick)
        for quick, nodes in kinds.items()
    ]


@contextmanager
def applied(mutant: Mutant, folder: Path) -> Iterator[None]:
    """Inside, the copy has the mistake."""
    path = mutant.path(folder)
    before, times = path.read_text(), path.stat()
    path.write_text(mutant.mutated(folder))
    try:
        yield
    finally:
        path.write_text(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


BUILD = """
from jax.ffi import include_dir
from functional_opt.native.library import checksum
flags = "-std=c++17 -O2 -march=native -fno-math-errno -fno-trapping-math -ffp-contract=fast -shared -fPIC"
macros = f"-DFUNCTIONAL_OPT_PORTABLE -DFUNCTIONAL_OPT_SOURCES={checksum()}"
print(flags, macros, f"-I{include_dir()}")
"""


@contextmanager
def rebuilt(folder: Path) -> Iterator[None]:
    """Inside, the copy has an extension of the sources as they are now, built for this processor alone."""
    native = folder / "functional_opt" / "native"
    before = {path: path.read_bytes() for path in native.glob("kernels.*.so")}
    cxx = compiler()
    if not before or cxx is None:
        raise RuntimeError("there is no extension, or no compiler for another one")
    try:
        flags = run(folder, "-c", BUILD).stdout.split()
        for path in before:
            path.unlink()  # a process may still have it in memory
            sources = [str(native / "cpp" / name) for name in ("step.cc", "newton_schulz.cc")]
            done = subprocess.run([cxx, *flags, *sources, "-o", str(path)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"the extension could not be built: {done.stderr[:300]}")
        yield
    finally:
        for path, code in before.items():
            path.unlink(missing_ok=True)
            path.write_bytes(code)


def verdict(done: list[subprocess.CompletedProcess]) -> tuple[str, str]:
    """Returns what became of a mutant, and why."""
    for process in done:
        last = process.stdout.strip().splitlines()[-1:]
        if process.returncode == 1 or process.returncode < 0:
            failed = [x for x in process.stdout.splitlines() if x.startswith("FAILED")]
            return "killed", (failed or [f"signal {-process.returncode}"])[0].removeprefix("FAILED ")
        if process.returncode or " passed" not in process.stdout:
            return "error", f"pytest returned {process.returncode}: {' '.join(last)}"
    return "LIVED", "all tests pass"


def judge(mutant: Mutant, folder: Path) -> tuple[str, str]:
    try:
        with applied(mutant, folder):
            if not mutant.rebuild:
                return verdict(run_tests(folder, mutant.node_ids))
            with rebuilt(folder):
                return verdict(run_tests(folder, mutant.node_ids))
    except subprocess.TimeoutExpired:
        return "error", f"no end after {SECONDS} s"
    except RuntimeError as e:
        return "error", str(e)


def failure_without_mutants(chosen: list[Mutant], folder: Path) -> str:
    """Returns what pytest says of a test that fails on the unchanged copy, or ""."""
    done = run_tests(folder, [node for mutant in chosen if not mutant.rebuild for node in mutant.node_ids])
    if again := [node for mutant in chosen if mutant.rebuild for node in mutant.node_ids]:
        with rebuilt(folder):  # what is built here is not what was built before
            done += run_tests(folder, again)
    return "".join(process.stdout[-5000:] for process in done if process.returncode)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="SUBSTRING", default="", help="only mutants whose file or code contains it")
    args = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    chosen = [mutant for mutant in MUTANTS if args.k in str(mutant)]
    if not chosen:
        console.print(f"no mutant contains {escape(repr(args.k))}")
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_to(folder)
        for mutant in chosen:
            mutant.mutated(folder)
        if failed := failure_without_mutants(chosen, folder):
            console.print(f"{escape(failed)}\n[bold red]a test fails without a mutant[/]: mend it first")
            return 1
        counts: Counter[str] = Counter()
        for i, mutant in enumerate(chosen, 1):
            found, why = judge(mutant, folder)
            counts[found] += 1
            console.print(f"{i:3}/{len(chosen)} [{COLOURS[found]}]{found:6}[/] {escape(str(mutant))}")
            console.print(f"               {escape(why[:160])}", style="dim")
    console.print(f"{counts['killed']} of {len(chosen)} killed, {counts['LIVED']} lived, {counts['error']} errors")
    return int(counts["killed"] < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
