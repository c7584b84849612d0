"""Running means of updates and of their powers, for your own transformations."""

from typing import Any

import jax
import jax.numpy as jnp

from ..core.leaves import Tree, cast_like, is_nothing, widen
from ..core.norms import abs_sq


def update_moment(updates: Tree, moments: Tree, decay: Any, order: int) -> Tree:
    """Returns decay · m + (1 − decay) · g^order, in the dtypes of the moments; m where g is None.

    >>> update_moment({"w": 2.0}, {"w": 0.0}, 0.5, 2)["w"].item()
    2.0
    """
    return _map(lambda g, m: decay * m + (1 - decay) * g**order, updates, moments)


def update_moment_per_elem_norm(updates: Tree, moments: Tree, decay: Any, order: int) -> Tree:
    """Returns decay · m + (1 − decay) · |g|^order, which is real for complex g, too.

    Differs from Optax, which keeps the sign of a real g in odd orders.
    """

    def leaf(g, m):
        size = abs_sq(g) if order == 2 else jnp.abs(g) ** order
        return decay * m + (1 - decay) * size

    return _map(leaf, updates, moments)


def update_infinity_moment(updates: Tree, moments: Tree, decay: Any, eps: Any) -> Tree:
    """Returns max(|g| + eps, decay · m), in the dtypes of the moments; m where g is None."""
    return _map(lambda g, m: jnp.maximum(jnp.abs(g) + eps, decay * m), updates, moments)


def bias_correction(moment: Tree, decay: Any, count: Any) -> Tree:
    """Returns m / (1 − decay^count), in the dtypes of the moments.

    >>> bias_correction({"w": 0.5}, 0.5, 1)["w"].item()
    1.0
    """
    weight = 1 - decay ** jnp.asarray(count)
    return jax.tree.map(lambda m: cast_like(widen(m) / weight, m), moment)


def _map(rule, updates: Tree, moments: Tree) -> Tree:
    def leaf(g, m):
        return m if is_nothing(g) else cast_like(rule(widen(jnp.asarray(g)), widen(jnp.asarray(m))), m)

    return jax.tree.map(leaf, updates, moments, is_leaf=is_nothing)
