"""imperative: the transformation of an optimizer whose code assigns to variables."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from ...core.checks import Static
from ...core.transformation import (
    GradientTransformation,
    Transformation,
    increment,
    needs_params,
    transformation,
    zero_count,
)
from ..variables import recording
from ..variables.recording import Cell
from ..variables.variable import Variable
from .by_variable import BySlot, ByVariable, ImperativeState, shift_counts
from .engine import Engine
from .views import SlotView


class Script(Protocol):
    """An optimizer with code of the user's, as `imperative` runs it."""

    _engine: Engine
    _hyper: dict[str, Any]
    _traced_hyper: Cell
    """Holds the hyperparameters while the code is traced."""

    @property
    def _iterations(self) -> Variable: ...

    def _slots_for(self, params: ByVariable) -> BySlot:
        """Returns all slots that the user's code makes."""
        ...

    def _apply_all(self, pairs: Sequence[tuple[Any, Variable]]) -> None:
        """Runs the user's code for each variable."""
        ...


@transformation
class imperative(GradientTransformation):
    """Runs the code of an optimizer that assigns to its variables; `hyper` holds its hyperparameters by name.

    `rule` is the rule of the built-in class that the optimizer extends, whose state the code may move.
    """

    script: Static[Any]
    constants: Static[tuple]  # the optimizer's Python attributes, which the code may read
    hyper: dict[str, Any]
    rule: Transformation

    def init(self, params):
        return ImperativeState(zero_count(), self.rule.init(params), self.script._slots_for(params))

    def update(self, updates, state, params: Any = None, **extra):
        needs_params(params, self)
        script: Script = self.script
        store: Any = script._engine.cells()[0]
        variables = {key: v for key, v in store.variables.items() if params.get(key) is not None}
        hyper = [(v, self.hyper[name]) for name, v in script._hyper.items() if isinstance(v, Variable)]

        def run():
            script._apply_all([(updates[key], v) for key, v in variables.items() if updates[key] is not None])
            after = store.state
            return {key: v._value for key, v in variables.items()}, after.rule, after.added

        inner = jax.tree.map(lambda x: x, state)
        cells = [*variables.values(), store, script._iterations, script._traced_hyper, *(v for v, _ in hyper)]
        values = [params[key] for key in variables]
        # the code sees the number of updates, even if several gradients make one; the counts of the rule follow it
        present = store.state._replace(inner=inner, counted=state.count)
        values += [present, state.count, self.hyper, *(x for _, x in hyper)]
        done = recording.call(run, cells, values)
        _check_unchanged(script, self.constants)
        own = set(map(id, cells))
        for i, (cell, x) in done.written.items():
            if i not in own and not isinstance(cell, SlotView):
                cell._value = x
        new, rule, slots = done.out
        moved = {key: new[key] - params[key] for key in variables}
        moved = ByVariable((key, moved.get(key)) for key in updates)
        return moved, ImperativeState(increment(state.count), shift_counts(rule, jnp.int32(1)), slots)


class _Same:
    """An object as a constant: equal only to itself, which it keeps alive."""

    def __init__(self, x: Any):
        self.x = x

    def __eq__(self, other):
        return isinstance(other, _Same) and self.x is other.x

    def __hash__(self):
        return id(self.x)


def python_state(attributes: dict[str, Any]) -> tuple:
    """Returns attributes in a form that compares: numbers and strings by value, arrays and other objects as such.

    Variables, optimizers and functions are left out: their values are inputs of a step, or do not change.
    """
    return tuple((name, _frozen(x)) for name, x in attributes.items() if not _is_carried(x))


def _is_carried(x: Any) -> bool:
    return isinstance(x, Cell) or hasattr(x, "_engine") or callable(x)


def _frozen(x: Any) -> Any:
    if x is None or isinstance(x, bool | int | float | complex | str | bytes | np.generic):
        return type(x).__name__, repr(x)  # NaN is itself
    if isinstance(x, list | tuple):
        return type(x).__name__, *map(_frozen, x)
    if isinstance(x, dict):
        return "dict", *((_frozen(k), _frozen(v)) for k, v in x.items())
    if isinstance(x, set | frozenset):
        return "set", frozenset(map(_frozen, x))
    return _Same(x)


def _check_unchanged(script: Any, before: tuple) -> None:
    """Raises RuntimeError if the traced code changed an attribute, which would happen once and not at each step."""
    old = dict(before)
    for name, x in script._constants():
        if x != old.get(name):
            leaves = jax.tree.leaves(vars(script).get(name))
            traced = "; it now holds a tracer" if any(isinstance(y, core.Tracer) for y in leaves) else ""
            raise RuntimeError(
                f"the code of {type(script).__name__} changes self.{name}, which happens once, when it is compiled, "
                f"and not at each step{traced}. Keep what changes in a variable, made by add_weight or add_slot, and "
                "assign to that"
            )
