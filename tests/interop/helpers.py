"""Three steps of a transformation on a tree of dicts, without jit, and how the last params compare."""

import functools
from typing import Any

import numpy as np
import pytest

import functional_opt as fo

from ..conformance.cases import OPTIMIZERS, PLAIN
from ..helpers import at, make_grads, make_params

STEPS = 3
EACH = [case for case in OPTIMIZERS if case in PLAIN]
"""Every optimizer of the table once: what a library does to trees and states, no option of a rule changes."""

each = pytest.mark.parametrize("case", EACH, ids=repr)


def grads_at(i: int) -> Any:
    return at(make_grads(STEPS + 1), i)


@functools.cache
def begun(case: Any) -> Any:
    """The state before the first step."""
    return case.tx().init(make_params())


@functools.cache
def trained(case: Any) -> tuple[Any, Any]:
    """The params and the state after three steps on plain dicts, one operation at a time."""
    return advance(case.tx(), make_params(), begun(case), range(STEPS))


@functools.cache
def trained_further(case: Any) -> tuple[Any, Any]:
    """What a fourth step makes of them."""
    return advance(case.tx(), *trained(case), [STEPS])


def advance(tx: Any, params: Any, state: Any, steps: Any) -> tuple[Any, Any]:
    for i in steps:
        updates, state = tx.update(grads_at(i), state, params)
        params = fo.apply_updates(params, updates)
    return params, state


def bits(x: Any) -> tuple:
    """All that makes two arrays the same."""
    x = np.asarray(x)
    return x.dtype, x.shape, x.tobytes()
