"""An eager step: takes the arrays out of the variables, runs the compiled step, and stores its results."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..variables import recording
from ..variables.indexed_slices import IndexedSlices
from ..variables.recording import BUSY, Busy
from ..variables.variable import Variable
from . import transaction
from .engine import Engine, SingleEngine, undone_on_error
from .packing import Group, Packed
from .step import Rounds, Step
from .store import is_traced

ARRAY = type(jnp.zeros(()))  # comparing types, as `isinstance(x, jax.Array)` takes thirty times as long
Pairs = list[tuple[Any, Variable]]


def apply(engine: Engine, grads: Sequence[Any], variables: Sequence[Variable]) -> Group | None:
    """Takes one step. A variable that is listed more than once takes part in several rounds of it.

    Returns what `repeat` needs to take the same step again with other gradients, if it can.
    """
    rounds = split_in_rounds([(g, v) for g, v in zip(grads, variables, strict=True) if g is not None])
    if not rounds:
        return None
    variables = [v for _, v in rounds[0]]
    if recording.active() or is_traced((list(grads), [v._value for v in variables])):
        take_inline(engine, rounds)
        return None
    with BUSY.lock:
        return undone_on_error(engine, lambda: _apply(engine, rounds))


def _apply(engine: Engine, rounds: list[Pairs]) -> Group | None:
    variables = [v for _, v in rounds[0]]
    numbers = engine.prepare(variables)
    if isinstance(engine, SingleEngine) and engine.packs and len(rounds) == 1:
        group = Group(engine.store.variables, engine.store.keys, variables)
        group.structure = jax.tree.structure(numbers)
        _packed_step(engine, group, numbers, [g for g, _ in rounds[0]])
        return group
    _step(engine, numbers, rounds)
    return None


def repeat(engine: Engine, group: Group, pairs: Sequence[Any]) -> bool:
    """Takes the step of a group again, if the gradients are dense, of the same shapes and for the same variables."""
    if not are_pairs(pairs):
        return False
    grads, variables = zip(*pairs, strict=True)
    if (
        group.ids != tuple(map(id, variables))
        or set(map(type, grads)) != {ARRAY}
        or group.shapes != [g.shape for g in grads]
        or recording.active()
        or not isinstance(engine, SingleEngine)
    ):
        return False
    with BUSY.lock:
        if engine.store._settled() is None or set(map(type, _values(group))) != {ARRAY}:
            return False
        numbers = engine.rules._numbers()
        if jax.tree.structure(numbers) != group.structure:
            return False
        _packed_step(engine, group, numbers, grads)
    return True


def take_inline(engine: Engine, rounds: list[Pairs]) -> None:
    """Takes a step as a part of the program that is being traced."""

    listed = [[v for _, v in pairs] for pairs in rounds]

    def step() -> None:
        variables = engine.moving(listed[0])
        numbers = engine.prepare(variables)
        call = recording.depends_on(lambda: _whole(engine, listed))
        values, state, clock = call(
            numbers,
            engine.gather(variables, [v._value for v in variables]),
            engine.state(),
            engine.clock(),
            engine.idle(variables),
            _gathered(engine, rounds),
        )
        engine.keep(state, clock)
        for v, x in zip(variables, engine.scatter(variables, values), strict=True):
            v._value = x
        recording.note_step(engine.iterations)

    undone_on_error(engine, step)


def _values(group: Group) -> list[Any]:
    values = [v._stored for v in group.variables]  # a call of `_settled` for each would take longer
    return [v._settled() for v in group.variables] if Busy in set(map(type, values)) else values


def _packed_step(engine: SingleEngine, group: Group, numbers: Any, grads: Sequence[Any]) -> None:
    store, n = engine.store, len(group.variables)
    packed = store._stored = store.packed()
    arrays, packing = packed

    def keep(results: list[jax.Array]) -> None:
        for v, x in zip(group.variables, results, strict=False):
            v._stored = x
        store._stored = results[n:-1], packing
        engine.iterations._stored = results[-1]

    values = [*_values(group), *arrays]
    idle = [v._settled() for v in group.idle]
    others = numbers, engine.iterations._settled(), idle, [grads[i] for i in group.order]
    call = Packed(engine.step(group.variables), group.layout(packing))
    run_step(call, group.structure, [*group.variables, store], values, others, keep)


def _step(engine: Engine, numbers: Any, rounds: list[Pairs]) -> None:
    variables = engine.moving([v for _, v in rounds[0]])
    tree = engine.gather(variables, [v._settled() for v in variables]), engine.state()
    arrays, treedef = jax.tree.flatten(tree)
    clock = engine.clock()
    del tree  # so that only the variables hold their values

    def keep(results: list[jax.Array]) -> None:
        values, state = treedef.unflatten(results[: len(arrays)])
        for v, x in zip(variables, engine.scatter(variables, values), strict=True):
            v._stored = x
        engine.keep(state, jax.tree.unflatten(jax.tree.structure(clock), results[len(arrays) :]))

    others = numbers, clock, engine.idle(variables), _gathered(engine, rounds)
    call = Flat(_whole(engine, [[v for _, v in pairs] for pairs in rounds]), treedef)
    run_step(call, jax.tree.structure(numbers), [*variables, *engine.cells()], arrays, others, keep)


class Kind:
    """Calls that are compiled as one program. JAX compares kinds by identity, which no signal handler can interrupt.

    `warm` is True once such a step has run, `python` if it calls Python.
    """

    def __init__(self, call: Any):
        self.call, self.warm, self.python = call, False, False


_kinds: dict[Any, Kind] = {}


def run_step(
    call: Any, structure: Any, cells: Sequence[Any], arrays: list[jax.Array], others: tuple, keep: Callable
) -> None:
    """Runs a step compiled for `call` and numbers of this structure, and stores its results, under the lock."""
    key = call, structure
    if (kind := _kinds.get(key)) is None:
        kind = _kinds[key] = Kind(call)
        if len(_kinds) > 4096:
            del _kinds[next(iter(_kinds))]
    if not kind.warm:
        kind.python = transaction.calls_back(jitted_step.trace(kind, arrays, *others).jaxpr.jaxpr)
    if kind.python:
        transaction.run_with_callbacks(functools.partial(_undonated, kind), arrays, others, keep)
    else:
        transaction.run(functools.partial(jitted_step, kind), cells, arrays, others, keep, warm=kind.warm)
    kind.warm = True


@dataclass(frozen=True)
class Flat:
    """A step that takes the arrays of values and state in one list, and returns them so, followed by the clock."""

    step: Step
    treedef: Any

    def __call__(self, arrays, numbers, clock, idle, grads):
        values, state = self.treedef.unflatten(arrays)
        values, state, clock = self.step(numbers, values, state, clock, idle, grads)
        results, treedef = jax.tree.flatten((values, state))
        if treedef != self.treedef:
            raise TypeError(f"a step changed the structure of the state from {self.treedef} to {treedef}")
        return [*results, *jax.tree.leaves(clock)]


def _call(kind: Kind, arrays: list, numbers: Any, clock: Any, idle: Any, grads: Any) -> list[jax.Array]:
    return kind.call(arrays, numbers, clock, idle, grads)


# Arrays are passed in the order in which they are returned: donated buffers are matched to results in order, and one
# that had to change places would be copied.
jitted_step = jax.jit(_call, static_argnums=0, donate_argnums=1)
"""Runs a step, compiled once for all optimizers of the same structure. The arrays are donated."""
_undonated = jax.jit(_call, static_argnums=0)


def _whole(engine: Engine, rounds: list[list[Variable]]) -> Step:
    """Returns the step of the variables of each round."""
    steps = tuple(engine.step(variables) for variables in rounds)
    return steps[0] if len(steps) == 1 else Rounds(steps)


def _gathered(engine: Engine, rounds: list[Pairs]) -> Any:
    each = [engine.gather([v for _, v in pairs], [g for g, _ in pairs]) for pairs in rounds]
    return each[0] if len(each) == 1 else tuple(each)


def are_pairs(pairs: Sequence[Any]) -> bool:
    """Returns whether all are tuples of length two. It avoids a Python loop, which would slow an eager step."""
    return set(map(type, pairs)) == {tuple} and set(map(len, pairs)) == {2}


def split_in_rounds(pairs: Pairs) -> list[Pairs]:
    """Splits pairs into rounds that list each variable at most once. The first round has all variables."""
    rounds: list[Pairs] = []
    times: dict[int, int] = {}
    for g, v in pairs:
        n = times[id(v)] = times.get(id(v), 0) + 1
        if n > len(rounds):
            rounds.append([])
        rounds[n - 1].append((g if type(g) in (ARRAY, IndexedSlices) else jnp.asarray(g), v))
    return rounds
