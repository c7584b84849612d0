"""Times one step of Muon against Optax's: `python -m benchmarks.muon`."""

import argparse

import optax.contrib

import functional_opt

from .harness import interleave, report
from .step import contender

SIZES = {
    "72 matrices of 256 × 256": {str(i): (256, 256) for i in range(72)},
    "24 matrices of 256 × 1024, 24 of 1024 × 256": {
        f"{i}/{name}": shape for i in range(24) for name, shape in (("up", (256, 1024)), ("down", (1024, 256)))
    },
}


def main(rounds: int) -> None:
    rows = []
    for size, shapes in SIZES.items():
        contenders = {
            "ours": contender(functional_opt, functional_opt.muon(0.02), shapes),
            "optax": contender(optax, optax.contrib.muon(0.02), shapes),
        }
        rows.append((size, interleave(contenders, rounds, size)))
    report("Muon, CPU", rows, ["optax"], rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    main(parser.parse_args().rounds)
