"""What an optimizer keeps for its variables: pytrees with a dict by variable wherever params would stand."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.transformation import GradientTransformation, zero_count


class ByVariable(dict):
    """A dict keyed by a variable's path: what marks, in any state, the parts that belong to variables."""


jax.tree_util.register_pytree_with_keys(
    ByVariable,
    lambda d: ([(jax.tree_util.DictKey(k), x) for k, x in d.items()], tuple(d)),
    lambda keys, values: ByVariable(zip(keys, values, strict=True)),
    lambda d: (list(d.values()), tuple(d)),
)


def is_by_variable(x: Any) -> bool:
    return isinstance(x, ByVariable)


def field_name(path: tuple) -> str:
    """The name of the field or key that a path ends with; empty if it has none."""
    return str(getattr(path[-1], "name", getattr(path[-1], "key", ""))) if path else ""


class State(NamedTuple):
    """`inner`: the state of the transformation. `counted`: the steps that the counts in it stand for.

    `average` and `accumulated`: by variable, running means of the values and gradients gathered so far;
    empty where the optimizer keeps none.
    """

    inner: Any
    counted: jax.Array
    average: ByVariable
    accumulated: ByVariable


def extend_state(
    tx: GradientTransformation, state: State | None, values: ByVariable, *, average: bool, accumulate: bool
) -> State:
    """The state for all of `values`: what `state` has there, else as at the start."""
    state = State(None, zero_count(), ByVariable(), ByVariable()) if state is None else state
    old = dict(jax.tree_util.tree_leaves_with_path(state.inner, is_leaf=is_by_variable))

    def carry(path, fresh):
        kept = old.get(path, fresh)
        return ByVariable(fresh | kept) if is_by_variable(fresh) else kept

    fresh = shift_counts(tx.init(values), state.counted)
    zeros = {key: jnp.zeros_like(x) for key, x in values.items()}
    copies = {key: jnp.copy(x) for key, x in values.items() if key not in state.average} if average else {}
    return State(
        jax.tree_util.tree_map_with_path(carry, fresh, is_leaf=is_by_variable),
        state.counted,
        ByVariable((key, state.average.get(key, copies.get(key))) for key in values) if average else ByVariable(),
        ByVariable(zeros | state.accumulated) if accumulate else ByVariable(),
    )


def shift_counts(inner: Any, by: jax.Array) -> Any:
    """The state with `by` more in every field called count; those of inner states may lag behind the others."""

    def leaf(path, x):
        is_count = field_name(path) == "count" and not is_by_variable(x)
        return jnp.maximum(x + by, 0).astype(x.dtype) if is_count else x

    return jax.tree_util.tree_map_with_path(leaf, inner, is_leaf=is_by_variable)


def keep_variables(keys: Any, old: Any, new: Any) -> Any:
    """The new state, but the old one of some variables."""

    def leaf(old, new):
        return ByVariable((k, old[k] if k in keys else x) for k, x in new.items()) if is_by_variable(new) else new

    return jax.tree.map(leaf, old, new, is_leaf=is_by_variable)
