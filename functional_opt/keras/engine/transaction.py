"""Runs a program that may reuse the memory of its inputs: all of its results are stored, or nothing changes.

JAX gives no result of a donating program back twice. If an exception arrives between the end of the program and the
assignment of its results (Ctrl-C, for one), the inputs are gone and so are the results. So the results go into a list
before Python runs another instruction, and are stored from there, whatever happens.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ..variables.foreign import Foreign
from ..variables.recording import BUSY, Cell
from .donation import to_donate

T = TypeVar("T")


class _Thread(threading.local):
    stored = 0


_thread = _Thread()


def stored() -> int:
    """Returns how many times this thread has stored results."""
    return _thread.stored


def run(
    program: Callable[..., list[Any]],
    cells: Sequence[Cell],
    arrays: list[jax.Array],
    others: Sequence[Any],
    store: Callable[[list[Any]], None],
    *,
    warm: bool,
) -> None:
    """Calls `program(arrays, *others)` and `store` with its result. The caller holds the lock of `BUSY`.

    Args:
        program: a jitted function that donates `arrays` and returns a list of arrays.
        cells: what holds the arrays now. If these are given away, readers wait until the results are stored.
        arrays: each is held by one cell. What somebody else holds too is copied.
        store: puts the results into the cells. It may be called several times.
        warm: whether the program has run with such arguments. If not, it gets copies: JAX runs Python to compile it,
            where an exception can arrive after the arrays were given away.
    """
    ours = cells if warm else []
    if Foreign in set(map(type, ours)):  # whose readers do not know of BUSY
        ours = [c for c in ours if type(c) is not Foreign]
    kept = [c._stored for c in ours]  # owns the arrays while the cells are busy
    BUSY.kept = ours, kept
    done: list[list[Any]] = []

    def settle() -> None:
        if done:
            store(done[0])
            _thread.stored += 1
        else:
            for c, x in zip(ours, kept, strict=True):
                c._stored = x

    try:
        for c in ours:
            c._stored = BUSY
        given = to_donate(arrays) if warm else [jnp.copy(x) for x in arrays]
        done.extend(map(program, (given,), *[(x,) for x in others]))  # no Python between the call and the list
        settle()
    except BaseException:
        try:
            settle()
        except BaseException:  # two signals that arrive while a program runs raise one exception after the other
            settle()
            raise
        raise
    finally:
        BUSY.kept = (), ()


def run_with_callbacks(
    program: Callable[..., list[Any]],
    arrays: list[jax.Array],
    others: Sequence[Any],
    store: Callable[[list[Any]], None],
) -> None:
    """Does the same for a program that calls Python, which may raise, or read the cells. It may not donate."""
    results = jax.block_until_ready(program(arrays, *others))  # an exception in the callback is raised here
    try:
        store(results)
    except BaseException:
        store(results)
        _thread.stored += 1
        raise
    _thread.stored += 1


def followed_by(step: Callable[[], T], finish: Callable[[], None]) -> T:
    """Takes a step and calls `finish`, unless the step is not taken. An exception comes before both or after both.

    `finish` may be called twice.
    """
    before = stored()
    try:
        out = step()
        finish()
    except BaseException:
        if stored() != before:
            finish()
        raise
    return out


def calls_back(jaxpr: Any) -> bool:
    """Returns whether a program calls Python while it runs."""
    inner = [x for eqn in jaxpr.eqns for x in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr)]
    called = any("callback" in eqn.primitive.name for eqn in jaxpr.eqns)
    return called or any(calls_back(getattr(x, "jaxpr", x)) for x in inner if _is_jaxpr(x))


def _is_jaxpr(x: Any) -> bool:
    return hasattr(getattr(x, "jaxpr", x), "eqns")
