"""A step of an embedding table, by its touched rows and whole: `python -m benchmarks.sparse`."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from functional_opt import keras

from .harness import interleave, write_table

ROWS, WIDTH, TOUCHED = 1_000_000, 64, 1024


def contender(opt: keras.optimizers.Optimizer, by_row: bool):
    """A function that does one training step and waits for it, and the memory that its program asks for besides."""
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
    """The bytes that a program needs besides its arguments and results."""
    return lowered.compile().memory_analysis().temp_size_in_bytes


def main(rounds: int) -> None:
    rows = []
    for name, make in {
        "SGD": lambda: keras.optimizers.SGD(0.1),
        "SGD, momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        "Adagrad": lambda: keras.optimizers.Adagrad(0.1),
        "Ftrl": lambda: keras.optimizers.Ftrl(0.1),
    }.items():
        (sparse, sparse_step), (dense, dense_step) = contender(make(), True), contender(make(), False)
        t = interleave({"sparse_read": sparse, "dense": dense}, rounds, name)
        indices = jnp.zeros(TOUCHED, jnp.int32)
        memory = [temporary(step.lower(indices)) / 2**20 for step in (sparse_step, dense_step)]
        times = f"{t['sparse_read'] * 1e3:.2f}", f"{t['dense'] * 1e3:.0f}", f"{t['sparse_read'] / t['dense']:.4f}"
        rows.append([name, *times, f"{memory[0]:.1f}", f"{memory[1]:.0f}"])
    columns = ["optimizer", "sparse_read, ms", "dense, ms", "ratio", "sparse_read, MiB", "dense, MiB"]
    title = f"Embedding table, {ROWS:,} × {WIDTH}, {TOUCHED} rows touched: time, and memory besides table and slots"
    write_table(title, columns, rows, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    main(parser.parse_args().rounds)
