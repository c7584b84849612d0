"""Times importing the library next to Optax, each in a new process, after JAX: `python -m benchmarks.startup`."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

from rich.progress import Progress

from .harness import milliseconds, write_table

PEERS = ("functional_opt", "optax")
CODE = """
import sys, time
import jax, jax.numpy, numpy, chex
start = time.perf_counter()
__import__(sys.argv[1])
print(time.perf_counter() - start)
"""


def seconds(module: str, bytecode: str) -> float:
    """Returns how long a new process takes to import a module after JAX and chex, with bytecode in that folder."""
    command = [sys.executable, "-c", CODE, module]
    env = os.environ | {"PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    times = {module: [] for module in PEERS}
    with Progress() as progress, tempfile.TemporaryDirectory() as bytecode:
        for module in PEERS:
            seconds(module, bytecode)  # writes it
        row = progress.add_task("imports", total=rounds)
        for _ in range(rounds):
            for module in PEERS:
                times[module].append(seconds(module, bytecode))
            progress.advance(row)
    ours, theirs = (statistics.median(times[module]) for module in PEERS)
    write_table(
        "Import",
        ["ours, ms", "optax, ms", "ours / optax"],
        [[milliseconds(ours), milliseconds(theirs), f"{ours / theirs:.2f}"]],
        rounds,
        ["Importing the package after jax, numpy and chex, with bytecode cached."],
        where="of new processes",
    )
