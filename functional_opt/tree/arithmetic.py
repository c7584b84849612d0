"""Treats trees as vectors: sums, products, norms, comparisons."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..core.leaves import Tree, is_nothing, widen
from ..core.norms import abs_sq, safe_sqrt
from ..core.norms import vdot as vdot


def add(tree_x: Tree, tree_y: Tree, *other_trees: Tree) -> Tree:
    """Returns x + y + ..., leaf by leaf.

    >>> add({"w": 1}, {"w": 2}, {"w": 3})
    {'w': 6}
    """
    return jax.tree.map(lambda *xs: functools.reduce(lambda x, y: x + y, xs), tree_x, tree_y, *other_trees)


def sub(tree_x: Tree, tree_y: Tree) -> Tree:
    """Returns x − y, leaf by leaf."""
    return jax.tree.map(lambda x, y: x - y, tree_x, tree_y)


def mul(tree_x: Tree, tree_y: Tree) -> Tree:
    """Returns x · y, leaf by leaf."""
    return jax.tree.map(lambda x, y: x * y, tree_x, tree_y)


def div(tree_x: Tree, tree_y: Tree) -> Tree:
    """Returns x / y, leaf by leaf."""
    return jax.tree.map(lambda x, y: x / y, tree_x, tree_y)


def scale(scalar: Any, tree: Tree) -> Tree:
    """Returns scalar · x, leaf by leaf.

    >>> scale(2, {"w": 3})
    {'w': 6}
    """
    return jax.tree.map(lambda x: scalar * x, tree)


def add_scale(tree_x: Tree, scalar: Any, tree_y: Tree) -> Tree:
    """Returns x + scalar · y, leaf by leaf; None where x is None."""
    return jax.tree.map(lambda x, y: None if x is None else x + scalar * y, tree_x, tree_y, is_leaf=is_nothing)


def clip(tree: Tree, min_value: Any = None, max_value: Any = None) -> Tree:
    """Clips every element to [min_value, max_value]; None means no bound."""
    return jax.tree.map(lambda x: jnp.clip(x, min_value, max_value), tree)


def conj(tree: Tree) -> Tree:
    """Returns the complex conjugate of every leaf."""
    return jax.tree.map(jnp.conj, tree)


def real(tree: Tree) -> Tree:
    """Returns the real part of every leaf."""
    return jax.tree.map(jnp.real, tree)


def where(condition: Any, tree_x: Tree, tree_y: Tree) -> Tree:
    """Returns x where the condition (a scalar, or an array that broadcasts) holds, else y.

    >>> where(False, {"w": 1}, {"w": 2})["w"].item()
    2
    """
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), tree_x, tree_y)


def sum(tree: Tree, associative_reduction: bool = False) -> Any:
    """Returns the sum of all elements, with 16-bit leaves summed in float32; 0 for an empty tree.

    `associative_reduction` adds the sums of the leaves in pairs, as a balanced tree.
    """
    sums = [jnp.sum(widen(x)) for x in jax.tree.leaves(tree)]
    while associative_reduction and len(sums) > 1:
        sums = [functools.reduce(jnp.add, sums[i : i + 2]) for i in range(0, len(sums), 2)]
    return functools.reduce(jnp.add, sums) if sums else 0


def max(tree: Tree) -> Any:
    """Returns the largest of all elements; −∞ for no elements."""
    return functools.reduce(jnp.maximum, [jnp.max(x) for x in jax.tree.leaves(tree) if jnp.size(x)], -jnp.inf)


def min(tree: Tree) -> Any:
    """Returns the smallest of all elements; ∞ for no elements."""
    return functools.reduce(jnp.minimum, [jnp.min(x) for x in jax.tree.leaves(tree) if jnp.size(x)], jnp.inf)


def size(tree: Tree) -> int:
    """Returns the number of elements in all leaves.

    >>> size({"w": jnp.ones((2, 3)), "b": 1.0})
    7
    """
    return functools.reduce(int.__add__, [jnp.size(x) for x in jax.tree.leaves(tree)], 0)


def norm(tree: Tree, ord: int | str | float | None = None, squared: bool = False) -> jax.Array:
    """Returns the norm of all elements as one vector, summed in float32; the gradient of the 2-norm at 0 is 0.

    Args:
        ord: 2 (or None), 1, or infinity, which may be written "inf".
        squared: whether to return the square of the norm.

    Raises ValueError for another order.

    >>> norm({"a": jnp.array([3.0]), "b": 4.0}).item(), norm([1.0, -2.0], ord=1).item()
    (5.0, 3.0)
    """
    if ord in (None, 2):
        squares = sum(jax.tree.map(lambda x: abs_sq(widen(jnp.asarray(x))), tree))
        return squares if squared else safe_sqrt(jnp.asarray(squares, jnp.result_type(squares, float)))
    sizes = jax.tree.map(lambda x: jnp.abs(widen(x)), tree)
    if ord == 1:
        result = sum(sizes)
    elif ord in (jnp.inf, "inf", "infinity"):
        result = jnp.maximum(max(sizes), 0)
    else:
        raise ValueError(f"ord must be None, 1, 2 or infinity, got {ord!r}")
    return result**2 if squared else result


def allclose(a: Tree, b: Tree, rtol: Any = 1e-5, atol: Any = 1e-8, equal_nan: bool = False) -> jax.Array:
    """Returns whether |a − b| ≤ atol + rtol·|b| for all elements: bool, shape ().

    >>> bool(allclose({"w": 1.0}, {"w": 1.0 + 1e-7}))
    True
    """
    close = jax.tree.map(lambda x, y: jnp.allclose(x, y, rtol, atol, equal_nan), a, b)
    return functools.reduce(jnp.logical_and, jax.tree.leaves(close), jnp.array(True))
