"""Matrices that act on the axes of a leaf, as used by SOAP, Shampoo and PSGD Kron.

Slots "by axis" are a tuple of trees; the k-th has an array for axis k of every leaf. If a leaf has no such axis, or
nothing is kept for it, the array is a single zero of shape (1,), because checkpoints cannot hold empty arrays.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.leaves import Tree, is_nothing, zeros_like
from ...core.paths import AllParams
from ...core.sharding import replicate


def slots_by_axis(params: Tree, make: Callable[[jax.Array, int], jax.Array | None], sharded: bool = False) -> Any:
    """Returns `make(x, k)` for every axis k of every leaf, or a single zero where that is None.

    x holds zeros in the leaf's shape, (1,) for a scalar, in float32 or as wide as the leaf. Unless `sharded`, it is
    replicated if its sharding is part of its type.

    >>> slots = slots_by_axis({"w": jnp.zeros((2, 3))}, lambda x, k: jnp.eye(x.shape[k]) if k else None)
    >>> [slot["w"].shape for slot in slots]
    [(1,), (3, 3)]
    """
    if isinstance(params, AllParams):
        return 0  # tells that these are not slots in the params' shapes

    def slot(x, k):
        x = (x if sharded else replicate(x)).reshape(x.shape or (1,))
        made = make(x, k) if k < x.ndim else None
        return absent(x) if made is None else made

    zeros = zeros_like(params)
    axes = max((max(np.ndim(x), 1) for x in jax.tree.leaves(params) if not is_nothing(x)), default=0)
    return tuple(jax.tree.map(lambda x, k=k: slot(x, k), zeros) for k in range(axes))


def absent(like: jax.Array) -> jax.Array:
    """Returns the placeholder for nothing kept: a single zero of shape (1,), on the devices of another array."""
    return jnp.zeros(1, like.dtype) + jnp.sum(jnp.zeros_like(like))


def sum_of_slices(x: jax.Array, k: int) -> jax.Array:
    """Returns the sum of `x` over all axes but k; zeros made this way are on the devices that hold their slices."""
    return jnp.sum(x, axis=[axis for axis in range(x.ndim) if axis != k])


def gram(x: jax.Array, k: int) -> jax.Array:
    """Returns X·Xᴴ, where X is the matrix whose rows are the slices of `x` along axis k.

    >>> gram(jnp.array([[3.0, 4.0]]), 0).tolist(), gram(jnp.array([[3.0, 4.0]]), 1).tolist()
    ([[25.0]], [[9.0, 12.0], [12.0, 16.0]])
    """
    others = [axis for axis in range(x.ndim) if axis != k]
    return jnp.tensordot(x, x.conj(), (others, others))


def unless_overflown(new: jax.Array, old: jax.Array) -> jax.Array:
    """Returns the new matrices, (..., n, n), with the old one in place of any that is not finite.

    If a gradient is so large that its products overflow, they tell nothing about directions, and must not stay in the
    state forever.

    >>> unless_overflown(jnp.full((1, 1), jnp.inf), jnp.ones((1, 1))).tolist()
    [[1.0]]
    """
    return jnp.where(jnp.all(jnp.isfinite(new), (-2, -1), keepdims=True), new, old)


def multiply_axis(a: jax.Array, x: jax.Array, k: int) -> jax.Array:
    """Multiplies every vector of `x` along axis k by the matrix `a`.

    >>> multiply_axis(jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([[1.0, 2.0]]), 1).tolist()
    [[2.0, 1.0]]
    """
    return jnp.moveaxis(jnp.tensordot(a, x, (1, k)), 0, k)
