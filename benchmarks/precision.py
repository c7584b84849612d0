"""Measures the time and state of Adam in 8 and 4 bits against float32: `python -m benchmarks.precision`."""

import argparse

import jax

import functional_opt
from functional_opt import adam, explain, quantize_state

from .harness import interleave, milliseconds, write_table
from .step import contender


def main(rounds: int) -> None:
    shapes = {str(i): (4096, 4096) for i in range(2)}
    params = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    elements = sum(x.size for x in params.values())
    txs = {
        "float32": adam(1e-3),
        "bfloat16": adam(1e-3, state_dtype="bfloat16"),
        "8 bits": quantize_state(adam(1e-3), 8),
        "4 bits": quantize_state(adam(1e-3), 4),
    }
    times = interleave(
        {name: contender(functional_opt, tx, shapes) for name, tx in txs.items()}, rounds, "Adam's state"
    )
    rows = [
        [name, f"{explain(tx, params).state_bytes / elements:.2f}", milliseconds(t), f"{t / times['float32']:.2f}"]
        for (name, tx), t in zip(txs.items(), times.values(), strict=True)
    ]
    columns = ["Adam's state", "bytes a parameter", "ms", "times float32"]
    write_table("Low precision, 33.5M parameters in 2 leaves, CPU", columns, rows, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    main(parser.parse_args().rounds)
