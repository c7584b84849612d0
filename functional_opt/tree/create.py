"""Creates trees with the shapes and dtypes of other trees: filled, random, cast."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ..core import leaves
from ..core.leaves import Tree, is_nothing


def zeros_like(tree: Tree, dtype: Any = None) -> Tree:
    """Returns zeros with the shapes of the leaves, and with their dtypes unless one is given.

    >>> zeros_like({"w": jnp.ones(2, "bfloat16")})["w"].dtype
    dtype(bfloat16)
    """
    return full_like(tree, 0, dtype)


def ones_like(tree: Tree, dtype: Any = None) -> Tree:
    """Returns ones with the shapes of the leaves, and with their dtypes unless one is given."""
    return full_like(tree, 1, dtype)


def full_like(tree: Tree, fill_value: Any, dtype: Any = None) -> Tree:
    """Returns leaves of the same shapes filled with `fill_value`, in the same dtypes unless one is given."""
    return jax.tree.map(lambda x: jnp.full_like(x, fill_value, dtype=dtype), tree)


def split_key_like(rng_key: jax.Array, target_tree: Tree) -> Tree:
    """Splits a key into one for every leaf."""
    treedef = jax.tree.structure(target_tree)
    return treedef.unflatten(list(jax.random.split(rng_key, treedef.num_leaves)))


def random_like(
    rng_key: jax.Array, target_tree: Tree, sampler: Callable = jax.random.normal, dtype: Any = None
) -> Tree:
    """Returns random leaves with the shapes of the target's leaves, and with their dtypes unless one is given.

    Args:
        rng_key: a key, which is split into one for each leaf.
        target_tree: the tree that sets the shapes.
        sampler: `f(key, shape, dtype)`.

    >>> random_like(jax.random.key(0), {"w": jnp.ones((2, 3))})["w"].shape
    (2, 3)
    """

    def leaf(x, key):
        return sampler(key, jnp.shape(x), dtype or jnp.result_type(x))  # pyright: ignore[reportCallIssue]

    return jax.tree.map(leaf, target_tree, split_key_like(rng_key, target_tree))


def batch_shape(tree: Tree, shape: tuple[int, ...] = ()) -> Tree:
    """Repeats every leaf along new leading axes.

    >>> batch_shape({"w": jnp.ones(2)}, (3,))["w"].shape
    (3, 2)
    """
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *jnp.shape(x))), tree)


def unwrap_random_key_data(input_tree: Tree) -> Tree:
    """Returns random keys as their integer data, for comparison or storage, and other leaves as they are."""

    def leaf(x):
        is_key = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if is_key else x

    return jax.tree.map(leaf, input_tree)


def cast(tree: Tree, dtype: Any) -> Tree:
    """Casts every leaf to a dtype; returns the tree as it is if that is None."""
    return tree if dtype is None else jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def cast_like(tree: Tree, other_tree: Tree) -> Tree:
    """Casts every leaf to the dtype of its counterpart."""
    return jax.tree.map(lambda x, y: x if x is None else leaves.cast_like(x, y), tree, other_tree, is_leaf=is_nothing)


def dtype(tree: Tree, mixed_dtype_handler: Literal["promote", "highest", "lowest"] | None = None) -> Any:
    """Returns the dtype of all leaves; that of `jnp.array(0.0)` if there are none.

    Args:
        mixed_dtype_handler: what to do if the dtypes differ: raise (None), or return the dtype they "promote" to,
            or the "highest" or "lowest" one, if one of them promotes to or from all others.

    Raises ValueError if there is no such dtype, or for another handler.

    >>> dtype([jnp.ones(1), jnp.ones(1, "bfloat16")], "lowest")
    dtype(bfloat16)
    """
    if mixed_dtype_handler not in (None, "promote", "highest", "lowest"):
        raise ValueError(
            f"mixed_dtype_handler must be None, 'promote', 'highest' or 'lowest', got {mixed_dtype_handler!r}"
        )
    found = sorted({jnp.dtype(jnp.result_type(x)) for x in jax.tree.leaves(tree)}, key=str)
    if not found:
        return jnp.dtype(jnp.result_type(float))
    if len(found) == 1:
        return found[0]
    if mixed_dtype_handler == "promote":
        return jnp.result_type(*found)
    for one in found if mixed_dtype_handler else ():
        promoted = {other: jnp.promote_types(one, other) for other in found}
        if all(to == (one if mixed_dtype_handler == "highest" else other) for other, to in promoted.items()):
            return one
    names = ", ".join(str(d) for d in found)
    raise ValueError(f"the leaves have several dtypes, {names}: none is the {mixed_dtype_handler or 'common'} one")
