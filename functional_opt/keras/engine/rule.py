"""apply_rule: the rule of a built-in optimizer for one variable, as code of the user's calls it."""

from typing import Any

import jax.numpy as jnp

from ...core.apply import apply_updates
from ...core.transformation import GradientTransformation
from ..variables.indexed_slices import IndexedSlices
from ..variables.variable import Variable
from .by_variable import ByVariable, merged, restricted, shift_counts
from .rows import RowMode, by_rows
from .store import Store


def apply_rule(
    tx: GradientTransformation,
    store: Store,
    variable: Variable,
    grad: Any,
    mode: RowMode,
    iterations: Any,
    count: Any,
) -> None:
    """Updates one variable and its part of the state.

    Args:
        tx: the rule.
        store: has the state, with slots of the variable.
        mode: what sparse gradients do to the rows of the variable.
        iterations: the array that counts the steps. It tells one step from the next: state that is kept once for all
            variables is for each of them that of the start of the step.
        count: the number of updates done.
    """
    key, state, notes = store.keys[id(variable)], store.existing, store.notes
    inner = state.rule
    if notes.get("iterations") is not iterations:
        notes.update(iterations=iterations, start=shift_counts(inner, count - state.counted))
    part = merged(restricted(notes["start"], key), restricted(inner, key), shared_of="first")

    def rule(inner: Any, values: ByVariable, grads: ByVariable) -> tuple[ByVariable, Any]:
        updates, new = tx.update(grads, inner, values)
        return apply_updates(values, updates), new

    grad = grad if isinstance(grad, IndexedSlices) else jnp.asarray(grad)
    values, part = by_rows(rule, mode, part, ByVariable({key: variable._value}), ByVariable({key: grad}))
    store.state = state.with_rule(merged(inner, part, shared_of="second", but_counts=True))
    variable.assign(values[key])
