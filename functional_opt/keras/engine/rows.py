"""Sparse gradients: the dense rule of an optimizer, applied to the rows that have a gradient.

A class names one of three modes and needs no code of its own.

- `all`: the gradient is made dense; all rows of slots and variable move.
- `touched`: the named rows of slots and variable are gathered, the rule is applied to them, and they are put
  back. No array of the variable's size is made.
- `slots_all`: the slots see the dense gradient, but only the named rows of the variable move.

`as they are` passes them to the rule, for a user's optimizer that may have code for them.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ..variables.indexed_slices import IndexedSlices
from .by_variable import ByVariable, is_by_variable

RowMode = Literal["all", "touched", "slots_all", "as they are"]
Rule = Callable[[Any, ByVariable, ByVariable], tuple[ByVariable, Any]]
"""Takes state, values and dense gradients; returns new values and state."""


def by_rows(rule: Rule, mode: RowMode, state: Any, values: ByVariable, grads: ByVariable) -> tuple[ByVariable, Any]:
    """Returns `rule(state, values, grads)`, where some gradients may be IndexedSlices."""
    sparse = {key: g for key, g in grads.items() if isinstance(g, IndexedSlices)}
    if mode == "as they are":
        return rule(state, values, grads)
    if mode == "touched" and sparse:
        return _on_touched_rows(rule, sparse, state, values, grads)
    dense = {key: g.dense(values[key].shape) for key, g in sparse.items()}
    new, state = rule(state, values, ByVariable(grads | dense))
    if mode == "slots_all":
        for key, g in sparse.items():
            moved = jnp.zeros(len(values[key]), bool).at[g.indices].set(True)
            new[key] = jnp.where(moved.reshape(-1, *[1] * (new[key].ndim - 1)), new[key], values[key])
    return new, state


def _on_touched_rows(
    rule: Rule, sparse: dict[str, IndexedSlices], state: Any, values: ByVariable, grads: ByVariable
) -> tuple[ByVariable, Any]:
    rows, summed = {}, {}
    for key, g in sparse.items():
        rows[key], summed[key] = g.summed(len(values[key]))
    taken = {key: _take(key, values[key], rows) for key in sparse}
    inner = _map(lambda key, x: _take(key, x, rows), state, sparse)
    new, inner = rule(inner, ByVariable(values | taken), ByVariable(grads | summed))
    put = {key: _put(values[key], rows[key], new[key]) for key in sparse}
    return ByVariable(new | put), _map(lambda key, x, old: _put(old, rows[key], x), inner, sparse, state)


def _take(key: str, table: jax.Array, rows: dict[str, jax.Array]) -> jax.Array:
    return jnp.take(table, rows[key], axis=0, mode="clip")


def _put(table: jax.Array, rows: jax.Array, new: jax.Array) -> jax.Array:
    """Returns the table with these rows replaced. Rows past its end, which pad the list, are dropped."""
    return table.at[rows].set(new, mode="drop", indices_are_sorted=True)


def _map(fn: Callable, state: Any, keys: Any, *rest: Any) -> Any:
    """Maps a function of key and arrays over the entries of states for the variables in `keys`."""

    def leaf(x, *others):
        if not is_by_variable(x):
            return x
        mapped = {k: jax.tree.map(lambda *a, k=k: fn(k, *a), x[k], *(o[k] for o in others)) for k in keys}
        return ByVariable(x | mapped)

    return jax.tree.map(leaf, state, *rest, is_leaf=is_by_variable)


def on_values(fn: Callable[[Any], Any], grads: ByVariable) -> ByVariable:
    """Applies a function to a tree of gradients: to the values of sparse ones, before duplicate rows are summed."""
    plain = {key: g.values if isinstance(g, IndexedSlices) else g for key, g in grads.items()}
    new = fn(ByVariable(plain))
    return ByVariable(
        (key, g.with_values(new[key]) if isinstance(g, IndexedSlices) else new[key]) for key, g in grads.items()
    )
