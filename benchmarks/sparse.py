"""Times a step of an embedding table, by its touched rows and dense: `python -m benchmarks.sparse`."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from functional_opt import keras

from .harness import interleave, milliseconds, write_table

ROWS, WIDTH, TOUCHED = 1_000_000, 64, 1024


def contender(opt: keras.optimizers.Optimizer, by_row: bool):
    """Returns a function that runs one training step and waits for it, and the step."""
    table = keras.Variable(jnp.zeros((ROWS, WIDTH)), name="table")
    indices = jnp.asarray(np.random.default_rng(0).choice(ROWS, TOUCHED, replace=False))

    def loss(indices):
        rows = table.sparse_read(indices) if by_row else table.value[indices]
        return jnp.sum((rows - 1.0) ** 2)

    step = opt.make_train_step(loss, [table])

    def run():
        step(indices)
        jax.block_until_ready(table.value)

    return run, step


def temporary(lowered: jax.stages.Lowered) -> int:
    """Returns the bytes that a program needs besides its arguments and results."""
    return lowered.compile().memory_analysis().temp_size_in_bytes


def main(rounds: int) -> None:
    makers = {
        "SGD": lambda: keras.optimizers.SGD(0.1),
        "SGD, momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        "Adagrad": lambda: keras.optimizers.Adagrad(0.1),
        "Ftrl": lambda: keras.optimizers.Ftrl(0.1),
    }
    cells, indices = [], jnp.zeros(TOUCHED, jnp.int32)
    for name, make in makers.items():
        (sparse, sparse_step), (dense, dense_step) = contender(make(), True), contender(make(), False)
        t = interleave({"rows": sparse, "dense": dense}, rounds, name)
        memory = [temporary(step.lower(indices)) / 2**20 for step in (sparse_step, dense_step)]
        times = milliseconds(t["rows"]), milliseconds(t["dense"]), f"{t['rows'] / t['dense']:.4f}"
        cells.append([name, *times, *(f"{m:.1f}" for m in memory)])
    columns = ["optimizer", "sparse_read, ms", "dense, ms", "ratio", "sparse_read, MiB", "dense, MiB"]
    title = f"Embedding table of {ROWS:,} × {WIDTH}, {TOUCHED} rows touched"
    notes = ["One training step. MiB: the memory that the program needs besides the table, its slots and the batch."]
    write_table(title, columns, cells, rounds, notes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    main(parser.parse_args().rounds)
