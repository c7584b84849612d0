"""Matrices that act on the axes of a leaf, as used by SOAP, Shampoo and PSGD Kron.

Slots "by axis" are a tuple of trees; the k-th has an array for axis k of every leaf. If a leaf has no such axis, or
nothing is kept for it, the array is a single zero of shape (1,), because checkpoints cannot hold empty arrays.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from ...core.leaves import MANY, Tree, is_nothing, of_other_shapes, widen, zeros_like, zip_leaves
from ...core.paths import AllParams
from ...core.sharding import replicate
from ...placement.owners import Distributed, Owners, split_among_owners


def slots_by_axis(
    params: Tree,
    make: Callable[[jax.Array, int], jax.Array | None],
    sharded: bool = False,
    distributed: Distributed | None = "local",
) -> Any:
    """Returns `make(x, k)` for every axis k of every leaf, or a single zero where that is None.

    x holds zeros in the leaf's shape, (1,) for a scalar, in float32 or as wide as the leaf. Unless `sharded`, it is
    replicated if its sharding is part of its type. Unless `distributed` is "local", the slots with two axes and more
    are then split over all devices, for owners.

    >>> slots = slots_by_axis({"w": jnp.zeros((2, 3))}, lambda x, k: jnp.eye(x.shape[k]) if k else None)
    >>> [slot["w"].shape for slot in slots]
    [(1,), (3, 3)]
    """
    if isinstance(params, AllParams):
        return 0  # tells that these are not slots in the params' shapes

    def slot(x, k):
        x = (x if sharded else replicate(x)).reshape(x.shape or (1,))
        made = make(x, k) if k < x.ndim else None
        if made is None:
            return absent(x)
        return split_among_owners(made) if distributed != "local" and made.ndim > 1 else made

    zeros = zeros_like(params)
    axes = max((max(np.ndim(x), 1) for x in jax.tree.leaves(params) if not is_nothing(x)), default=0)
    return tuple(jax.tree.map(lambda x, k=k: slot(x, k), zeros) for k in range(axes))


def factors_and_bases(params: Tree, has: Callable[[tuple[int, ...], int], bool], distributed: Any) -> tuple[Any, Any]:
    """Returns slots by axis for matrices of each axis k of a leaf of a shape that `has(shape, k)`: 0, and I."""

    def matrix(x, k, start):
        if not has(x.shape, k):
            return None
        return sum_of_slices(x, k)[:, None] + start * jnp.eye(x.shape[k], dtype=x.dtype)

    zero, one = (
        slots_by_axis(params, lambda x, k, start=start: matrix(x, k, start), distributed=distributed)
        for start in (0, 1)
    )
    return zero, one


def map_factors(
    fn: Callable,
    trees: Sequence[Tree],
    slots: Sequence[Sequence[Tree]],
    results: Sequence[int],
    shared: Sequence[Any] = (),
    owners: Owners | None = None,
    stacked: bool = False,
) -> tuple[Any, ...]:
    """Maps a function of leaves and of the factors of their axes over trees; on a mesh, each device does its share.

    Owners work on leaves that have a factor with two axes or more, each on whole leaves of its own (see `by_owners`).
    Other leaves are worked on where they lie, and so are all of them on one device.
    None in the first tree means no update: the result is what is there.

    Args:
        fn: `fn(*leaves, *factors, *shared)`: a leaf of each tree, widened to 32 bits, and from each of `slots` the
            list of arrays for the axes of the leaf (one for a scalar). It returns a tuple of leaves and such lists.
        trees: like the updates; the first one is named "updates" in errors.
        slots: slots by axis, as `slots_by_axis` makes them.
        results: for each result, the number of the argument that has its shape and placement.
        shared: arrays and numbers for all leaves. `fn` must not use arrays of another function than these.
        owners: those of the calls before, which keep what was sent to them; or none.
        stacked: whether leaves are stacks of matrices in their last two axes, which `fn` treats one by one.

    Raises ValueError, naming the leaf, if the slots are for leaves of other shapes.

    >>> times = lambda x, q: (multiply_axis(q[0], x, 0),)
    >>> x, q = {"w": jnp.array([1.0, 2.0])}, ({"w": jnp.array([[0.0, 1.0], [1.0, 0.0]])},)
    >>> map_factors(times, (x,), (q,), (0,))[0]["w"].tolist()
    [2.0, 1.0]
    """
    flat = (*trees, *itertools.chain(*slots))
    names = ("updates", *("the optimizer state" for _ in flat[1:]))
    treedef, leaves = zip_leaves(flat, names, same_shape=False)
    rows = [_arguments(row, len(trees), [len(some) for some in slots]) for row in leaves]
    there = [i for i, row in enumerate(rows) if not is_nothing(row[0])]
    if len(there) >= MANY and any(isinstance(rows[i][0], core.Tracer) for i in there):
        fn = jax.jit(fn)  # traced once for all leaves that are alike

    def refuse(k, e):
        return of_other_shapes(trees[0], there[k], jax.tree.leaves(rows[there[k]][1:]), e)

    done: list[Any] = [[row[k] for k in results] for row in rows]
    given = [jax.tree.map(widen, rows[i]) for i in there]
    found = (owners or Owners()).map(fn, given, results, refuse, shared, stacked)
    for i, some in zip(there, found, strict=True):
        done[i] = some
    columns = [[row[n] for row in done] for n in range(len(results))]
    return tuple(_tree(treedef, column, (*trees, *slots)[k]) for column, k in zip(columns, results, strict=True))


def _arguments(row: Sequence[Any], n: int, families: Sequence[int]) -> list[Any]:
    """Returns n leaves, and of each family of slots by axis, of which there are so many, a list of the leaf's own."""
    found, rest, axes = [*row[:n]], row[n:], max(np.ndim(row[0]), 1)
    for size in families:
        found.append([*rest[: min(axes, size)]])
        rest = rest[size:]
    return found


def _tree(treedef: Any, column: Sequence[Any], old: Any) -> Any:
    """Returns the tree of leaves, or slots by axis of lists, with the old ones for axes that a leaf lacks."""
    if not column or not isinstance(column[0], list):
        return treedef.unflatten(column) if column else old
    kept = [treedef.flatten_up_to(tree) for tree in old]
    own = [[*some, *(slot[i] for slot in kept[len(some) :])] for i, some in enumerate(column)]
    return tuple(map(treedef.unflatten, zip(*own, strict=True)))


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


def mean_factor(factor: jax.Array, term: jax.Array, beta: Any) -> jax.Array:
    """Returns beta·factor + (1 − beta)·term, in the factor's dtype; the factor where it is no matrix or overflows."""
    if factor.ndim < 2:
        return factor
    return unless_overflown((beta * factor + (1 - beta) * term).astype(factor.dtype), factor)


def unless_overflown(new: Any, old: Any) -> jax.Array:
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


def turn(x: jax.Array, q: Sequence[jax.Array], back: bool = False, axes: Sequence[int] | None = None) -> jax.Array:
    """Returns an array in the eigenbases q of its axes, or one there in its own basis; a q of one axis is skipped.

    >>> q = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> turn(jnp.array([3.0, 4.0]), [q]).tolist(), turn(jnp.array([-4.0, 3.0]), [q], back=True).tolist()
    ([-4.0, 3.0], [3.0, 4.0])
    """
    for k in range(x.ndim) if axes is None else axes:
        if q[k].ndim > 1:
            x = multiply_axis(q[k] if back else q[k].conj().T, x, k)
    return x


def eigenvectors(a: jax.Array) -> jax.Array:
    """Returns the eigenvectors of a Hermitian matrix in columns, that of the largest eigenvalue first."""
    return jnp.linalg.eigh(a)[1][:, ::-1]
