"""The compiled step that all optimizers share: pure, and fed with whatever may change.

The transformation is an argument, its hyperparameters leaves, so that none of them recompiles it.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ...base import GradientTransformation, apply_updates, increment
from ...state import get_all_with_path, set


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


def grow(tx: GradientTransformation, state: Any, values: ByVariable) -> Any:
    """The state of `tx` for all of `values`: what `state`, which may be None, has there, else as at the start."""
    old = dict(jax.tree_util.tree_leaves_with_path(state, is_leaf=is_by_variable))

    def carry(path, fresh):
        kept = old.get(path, fresh)
        return ByVariable(fresh | kept) if is_by_variable(fresh) else kept

    return jax.tree_util.tree_map_with_path(carry, tx.init(values), is_leaf=is_by_variable)


Constraints = tuple[tuple[str, Callable[[jax.Array], jax.Array]], ...]


def pure_step(
    tx: GradientTransformation,
    state: Any,
    values: ByVariable,
    grads: ByVariable,
    iterations: jax.Array,
    constraints: Constraints,
) -> tuple[ByVariable, Any]:
    """New values and state. Variables without a gradient (None) keep their slots as they are."""
    if any(x.dtype == jnp.float64 for x in jax.tree.leaves(values)):
        # float32 hyperparameters, as Keras keeps them, but the coefficients made of them in float64
        tx = jax.tree.map(lambda h: jnp.asarray(h, jnp.float64) if jnp.result_type(h) == jnp.float32 else h, tx)
    if get_all_with_path(state, "count"):
        state = set(state, count=iterations)
    updates, state = tx.update(grads, state, values)
    values = apply_updates(values, updates)
    for key, constraint in constraints:
        if grads[key] is not None:
            values[key] = jnp.asarray(constraint(values[key]), values[key].dtype)
    return values, state


@functools.partial(jax.jit, static_argnames=("constraints", "advance"), donate_argnums=(1, 2, 4))
def jitted_step(
    tx: GradientTransformation,
    state: Any,
    values: ByVariable,
    grads: ByVariable,
    iterations: jax.Array,
    constraints: Constraints,
    advance: bool,
) -> tuple[ByVariable, Any, jax.Array]:
    """`pure_step`, compiled once for all optimizers of the same structure; its state and values are donated."""
    values, state = pure_step(tx, state, values, grads, iterations, constraints)
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
