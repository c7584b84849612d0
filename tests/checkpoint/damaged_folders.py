"""Damages an orbax checkpoint again and again: it is refused with ValueError, or comes back to the bit."""

import random
import sys
from pathlib import Path

import functional_opt as fo
from functional_opt.interop import orbax

from ..helpers import make_params
from ..interop.helpers import advance
from .test_arrays import assert_same_bits


def main(folder, times):
    tx, params = fo.adamw(fo.linear_schedule(0.1, 0.0, 10)), make_params()
    params, state = advance(tx, params, tx.init(params), range(2))
    orbax.save(folder, tx, params, state)
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    rng, refused = random.Random(0), 0
    for _ in range(times):
        path = rng.choice(files)
        whole = path.read_bytes()
        if (kind := rng.randrange(3)) == 0:
            path.unlink()
        elif kind == 1:
            path.write_bytes(whole[: rng.randrange(len(whole))])
        else:
            at = rng.randrange(len(whole))
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        try:
            assert_same_bits(orbax.restore(folder)[1:3], (params, state))  # of a file that is not read
        except ValueError:
            refused += 1
        path.write_bytes(whole)
    assert refused > 0
    assert_same_bits(orbax.restore(folder)[1:3], (params, state))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
