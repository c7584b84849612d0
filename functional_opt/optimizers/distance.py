"""Helpers for optimizers that find their own step size: sums over all leaves, and safe quotients."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from ..core.leaves import Tree, is_nothing, widen, zip_leaves
from ..core.norms import safe_sqrt
from ..core.ranges import Convert, Range
from .curvature import largest


def _decays(name: str, x: Any) -> tuple:
    if not isinstance(x, tuple | list) or len(x) != 2:
        raise TypeError(f"{name} must be a pair of numbers in [0, 1), got {x!r}")
    return tuple(Range("[0, 1)").check(f"{name}[{i}]", b) for i, b in enumerate(x))


Betas = Annotated[Any, Convert(_decays, "pair of [0, 1)")]
"""A pair of decays, each in [0, 1)."""


def total_over_leaves(fn: Callable, updates: Tree, *others: Tree) -> jax.Array:
    """Returns Σ fn(g, *others) over the elements of all leaves that have an update, in float32 or wider.

    >>> grads, params = {"a": jnp.ones(2), "b": None}, {"a": jnp.full(2, 3.0), "b": jnp.ones(1)}
    >>> total_over_leaves(lambda g, w: g * w, grads, params).item()
    6.0
    """
    _, rows = zip_leaves((updates, *others), ("updates", *("params" for _ in others)))
    sums = [jnp.sum(fn(*map(widen, row))) for row in rows if not is_nothing(row[0])]
    return jnp.sum(jnp.stack([s.astype(jnp.result_type(*sums)) for s in sums])) if sums else jnp.zeros([])


def largest_size(updates: Tree, tree: Tree, least: float = 1e-12) -> jax.Array:
    """Returns S, the largest |element| of `tree` in leaves that have an update, but at least `least`.

    Sums of |x / S|² do not overflow, and neither does 1 / S². Derivatives treat S as a constant.

    >>> largest_size({"w": jnp.ones(2), "b": None}, {"w": jnp.array([-8.0, 3.0]), "b": jnp.array(9.0)}).item()
    8.0
    """
    _, rows = zip_leaves((updates, tree), ("updates", "params"))
    return jnp.maximum(largest([widen(x) for u, x in rows if not is_nothing(u)]), least)


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the real part of x̄·y per element. Its sum is the inner product of x and y as real vectors."""
    return (x.conj() * y).real


def safe_divide_by_root(x: jax.Array, square: jax.Array, eps: Any) -> jax.Array:
    """Returns x / √(square + eps), and 0 where that would divide by 0."""
    root = safe_sqrt(square + eps)
    return jnp.where(root > 0, x / jnp.where(root > 0, root, 1.0), 0.0)


def safe_divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns x / y for y ≥ 0, and 0 where y = 0."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1.0), 0.0)


def ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns x / y for two sums, y ≥ 0, and 0 where y is so small that the derivative's 1 / y² would overflow."""
    least = 16 * float(jnp.finfo(y.dtype).tiny) ** 0.5
    return safe_divide(x, jnp.where(y > least, y, 0.0))
