"""Norms and sums of squares in float32, with safe derivatives, and checks for finite numbers."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .leaves import Tree, is_nothing, widen
from .sharding import on_automatic_axes


def abs_sq(x: jax.Array) -> jax.Array:
    """Returns |x|², which is real for complex x, too."""
    return (x * x.conj()).real if jnp.iscomplexobj(x) else x * x


def safe_sqrt(x: jax.Array) -> jax.Array:
    """Returns √x for x ≥ 0, with derivative 0 instead of infinity at 0."""
    zero = x == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, x)))


def nonzero(x: jax.Array) -> jax.Array:
    """Returns x ≥ 0 as a divisor, with 1 in place of 0."""
    return jnp.where(x == 0, 1.0, x)


def matrix_norm(x: jax.Array) -> jax.Array:
    """Returns the Frobenius norm of a matrix, or of each of a stack of them, in the last two axes; these are kept."""
    return safe_sqrt(jnp.sum(abs_sq(x), axis=(-2, -1), keepdims=True))


def sums_of_squares(tree: Tree) -> jax.Array:
    """Returns Σ|x|² of each leaf, summed in float32 or wider; shape (number of leaves,)."""
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(tree) if not is_nothing(x)]
    if not leaves:
        return jnp.zeros(0)
    sums, places = [], []
    for some in batches(leaves):
        places += some
        if len(some) == 1:
            sums.append(_sum_of_squares(leaves[some[0]])[None])
        else:  # without the barrier, XLA would sum the leaves one by one again
            x = widen(jax.lax.optimization_barrier(jnp.stack([leaves[i] for i in some])))
            sums.append(jnp.sum(abs_sq(x), axis=range(1, x.ndim)))
    dtype = jnp.result_type(*{x.dtype for x in sums})
    in_turn = jnp.concatenate([x.astype(dtype) for x in sums])
    return in_turn if places == sorted(places) else in_turn[np.argsort(places)]


def _sum_of_squares(x: jax.Array) -> jax.Array:
    """Returns Σ|x|². Sums the rows of a large leaf first, because XLA on a CPU splits that among its threads."""
    squares = abs_sq(widen(x))
    if x.ndim > 1 and x.size > 2**14:
        squares = jax.lax.optimization_barrier(jnp.sum(squares, axis=-1))
    return jnp.sum(squares)


def batches(leaves: Sequence[jax.Array], most: int = 8, size: int = 2**14) -> list[list[int]]:
    """Groups leaves that can be stacked and processed as one, by index: alike, and of at most `size` elements each.

    A group has at most `most` leaves. One kernel for each of many small leaves would take long to compile, and so
    would one kernel that reads many of them. A leaf on automatic axes of a mesh is a group of its own: its type does
    not say how it is split, and stacking leaves that are split differently would send them.
    """
    alike: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        alike.setdefault(i if x.size > size or on_automatic_axes(x) else jax.typeof(x), []).append(i)
    return [some[i : i + most] for some in alike.values() for i in range(0, len(some), most)]


def global_norm(tree: Tree) -> jax.Array:
    """Returns the Euclidean norm of all leaves as one vector, summed in float32; its gradient at 0 is 0.

    >>> float(global_norm({"a": jnp.array([3.0]), "b": jnp.array(4.0)}))
    5.0
    """
    return safe_sqrt(jnp.sum(sums_of_squares(tree)))


def all_finite(tree: Tree) -> jax.Array:
    """Returns whether every element of every leaf is finite: bool, shape ()."""
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if not is_nothing(x)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.array(True)


def vdot(tree_x: Tree, tree_y: Tree) -> jax.Array:
    """Returns Σ conj(x)·y over all elements; 16-bit leaves are computed in float32.

    >>> vdot({"a": jnp.array([1, 2]), "b": jnp.array([3])}, {"a": jnp.array([1, 1]), "b": jnp.array([2])}).item()
    9
    """
    products = jax.tree.map(lambda x, y: jnp.vdot(widen(x), widen(y), precision="highest"), tree_x, tree_y)
    return functools.reduce(jnp.add, jax.tree.leaves(products), jnp.zeros([], int))
