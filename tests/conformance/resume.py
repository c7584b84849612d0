"""Training that stops and goes on: half a run, and `python -m tests.conformance.resume FOLDER` for the other half."""

import sys
from pathlib import Path
from typing import Any

import jax

import functional_opt as fo
from functional_opt.interop.safetensors import load, save

from ..helpers import at, make_grads, make_params
from .programs import quick

BEFORE, AFTER = 3, 2


def steps(case: Any, params: Any, state: Any, numbers: Any) -> tuple[Any, Any]:
    """The params and the state after steps with these numbers."""
    tx, grads = quick(case), make_grads(BEFORE + AFTER)
    for i in numbers:
        updates, state = tx.update(at(grads, i), state, params)
        params = fo.apply_updates(params, jax.tree.map(lambda u: case.pace * u, updates))
    return params, state


def first_half(case: Any) -> tuple[Any, Any, Any]:
    """The transformation, the params and the state that are to be saved."""
    tx, params = case.tx(), make_params()
    return tx, *steps(case, params, tx.init(params), range(BEFORE))


def second_half(case: Any, params: Any, state: Any) -> tuple[Any, Any]:
    return steps(case, params, state, range(BEFORE, BEFORE + AFTER))


def main(folder: Path) -> None:
    """Goes on from each `NAME.before` in the folder, and saves `NAME.after`."""
    from .cases import CASES

    for case in CASES:
        if (path := folder / f"{case.name}.before").exists():
            tx, params, state, _ = load(path, case.tx())
            save(path.with_suffix(".after"), tx, *second_half(case, params, state))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
