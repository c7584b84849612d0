"""The compiled step that all optimizers share: pure, and fed with whatever may change.

The transformation is an argument, its hyperparameters leaves, so that none of them recompiles it.
"""

import functools
import sys
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...base import GradientTransformation, apply_updates, increment, zero_count


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
    """`inner`: the state of the transformation. `counted`: the iterations that the counts in it stand for."""

    inner: Any
    counted: jax.Array


def grow(tx: GradientTransformation, state: State | None, values: ByVariable) -> State:
    """The state of `tx` for all of `values`: what `state` has there, else as at the start."""
    state = State(None, zero_count()) if state is None else state
    old = dict(jax.tree_util.tree_leaves_with_path(state.inner, is_leaf=is_by_variable))

    def carry(path, fresh):
        kept = old.get(path, fresh)
        return ByVariable(fresh | kept) if is_by_variable(fresh) else kept

    fresh = _shift_counts(tx.init(values), state.counted)
    inner = jax.tree_util.tree_map_with_path(carry, fresh, is_leaf=is_by_variable)
    return State(inner, state.counted)


def _shift_counts(inner: Any, by: jax.Array) -> Any:
    """The state with `by` more in every field called count; those of inner states may lag behind the others."""

    def leaf(path, x):
        is_count = field_name(path) == "count" and not is_by_variable(x)
        return jnp.maximum(x + by, 0).astype(x.dtype) if is_count else x

    return jax.tree_util.tree_map_with_path(leaf, inner, is_leaf=is_by_variable)


Constraints = tuple[tuple[str, Callable[[jax.Array], jax.Array]], ...]


def pure_step(
    tx: GradientTransformation,
    state: State,
    values: ByVariable,
    idle: ByVariable,
    grads: ByVariable,
    iterations: jax.Array,
    constraints: Constraints,
) -> tuple[ByVariable, State]:
    """New values and state. Variables without a gradient (None) keep their slots as they are.

    Some or all of these are in `idle` rather than in `values`; the transformation sees zeros there, as not
    every one knows what to do with None.
    """
    if any(x.dtype == jnp.float64 for x in jax.tree.leaves(values)):
        # float32 hyperparameters, as Keras keeps them, but the coefficients made of them in float64
        tx = jax.tree.map(lambda h: jnp.asarray(h, jnp.float64) if jnp.result_type(h) == jnp.float32 else h, tx)
    inner = _shift_counts(state.inner, iterations - state.counted)
    still = {key: idle[key] if values[key] is None else values[key] for key, g in grads.items() if g is None}
    zeros = {key: jnp.zeros(x.shape) for key, x in still.items()}
    updates, new = tx.update(ByVariable(grads | zeros), inner, ByVariable(values | zeros))
    values = apply_updates(values, ByVariable((key, None if key in still else u) for key, u in updates.items()))
    for key, constraint in constraints:
        if key not in still:
            values[key] = jnp.asarray(constraint(values[key]), values[key].dtype)
    counted = increment(iterations).astype(state.counted.dtype)
    return values, State(_keep(still, inner, new), counted)


def _keep(keys: Collection[str], old: Any, new: Any) -> Any:
    """The new state, but the old one of some variables."""

    def leaf(old, new):
        return ByVariable((k, old[k] if k in keys else x) for k, x in new.items()) if is_by_variable(new) else new

    return jax.tree.map(leaf, old, new, is_leaf=is_by_variable)


@functools.partial(jax.jit, static_argnames=("constraints", "advance"), donate_argnums=(1, 2, 5))
def jitted_step(
    tx: GradientTransformation,
    state: State,
    values: ByVariable,
    idle: ByVariable,
    grads: ByVariable,
    iterations: jax.Array,
    constraints: Constraints,
    advance: bool,
) -> tuple[ByVariable, State, jax.Array]:
    """`pure_step`, compiled once for all optimizers of the same structure; its state and values are donated."""
    values, state = pure_step(tx, state, values, idle, grads, iterations, constraints)
    return values, state, increment(iterations) if advance else iterations


def _references(arrays: list[Any], i: int) -> int:
    return sys.getrefcount(arrays[i])


# what `_references` counts for an array held by one owner and the list
_OWNED = _references([*(_owner := [object()])], 0)


def to_donate(arrays: list[Any]) -> list[Any]:
    """The arrays of a list whose one other owner will replace them; a copy of each that someone else holds too.

    That makes variables copy-on-write: what a user took out of one stays valid.
    """
    return [jnp.copy(arrays[i]) if _references(arrays, i) > _OWNED else arrays[i] for i in range(len(arrays))]


def donated_tree(tree: Any) -> Any:
    """`to_donate` for the leaves of a tree."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(to_donate(leaves))
