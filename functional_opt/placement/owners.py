"""Owners: each device of a mesh works on whole matrices of its own."""

import collections
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ..core.sharding import replicate, reshard, reshard_like
from .like import placed_like
from .mesh import AnyMesh, axis_names, entry_of
from .split import split_spec

Distributed = Literal["owners", "local"]
"""How matrices on a mesh are worked on: whole ones by owners, or each where it lies."""
OPEN = PartitionSpec.UNCONSTRAINED


def owners_mesh(leaves: Sequence[jax.Array], how: Distributed | None) -> AnyMesh | None:
    """Returns the mesh whose devices can own matrices; None on one device, in `shard_map`, or if `how` is "local"."""
    if how == "local":
        return None
    meshes = [jax.typeof(x).sharding.mesh for x in leaves]
    found = next((mesh for mesh in meshes if not mesh.empty and mesh.size > 1), None)
    return None if found is None or AxisType.Manual in found.axis_types else found


class Owners:
    """Works on rows of arrays, each device of their mesh on rows of its own; on one device, one after the other.

    Stacks that were sent to their owners are kept for as long as this object is, and not sent again. Inside of a
    branch or a loop, whose arrays nothing outside may use, use another one.
    """

    def __init__(self, distributed: Distributed | None = None):
        self.distributed: Distributed | None = distributed
        self._sent: dict[tuple[int, ...], tuple] = {}

    def map(
        self,
        fn: Callable,
        rows: Sequence[Sequence[Any]],
        results: Sequence[int],
        refuse: Callable[[int, Exception], Exception],
        shared: Sequence[Any] = (),
        stacked: bool = False,
    ) -> list[list[Any]]:
        """Returns the results of `fn(*row, *shared)` for every row.

        Owners work on a row if it has an array of two axes or more after its first entry.

        Args:
            fn: returns a tuple; it uses no arrays but its arguments.
            rows: for every leaf, the leaf itself and other arguments, which are arrays or lists of arrays.
            results: for each result, the number of the argument in a row that has its shapes and placement.
            refuse: returns the error to raise for a row, by its number, whose arguments `fn` cannot use.
            shared: arguments that are the same for all rows.
            stacked: whether the arrays are stacks of matrices in their last two axes, which `fn` treats one by one.
        """
        mesh = owners_mesh(jax.tree.leaves(rows), self.distributed)
        done: list[Any] = [None] * len(rows)
        groups: dict[Any, list[int]] = {}
        for i, row in enumerate(rows):
            if mesh is not None and any(x.ndim > 1 for x in jax.tree.leaves(row[1:])):
                groups.setdefault(jax.tree.structure(row), []).append(i)
                continue
            try:
                found = fn(*jax.tree.map(replicate, row), *shared)
            except (TypeError, ValueError) as e:
                raise refuse(i, e) from e
            done[i] = [jax.tree.map(reshard_like, x, row[k]) for x, k in zip(found, results, strict=True)]
        for treedef, some in groups.items():
            numbers = treedef.unflatten(range(treedef.num_leaves))
            like = jax.tree.leaves([numbers[k] for k in results])
            flat = [jax.tree.leaves(rows[i]) for i in some]
            own = fn if stacked else jax.vmap(fn, in_axes=(0,) * len(numbers) + (None,) * len(shared))

            def of_stacks(*stacks, treedef=treedef, own=own):
                return jax.tree.leaves(_where_they_lie(own, treedef.unflatten(stacks), shared))

            try:
                found = by_owners(of_stacks, flat, cast(Any, mesh), like, self._sent, as_stack if stacked else _one)
            except (TypeError, ValueError) as e:
                raise refuse(some[0], e) from e
            for i, row in zip(some, found, strict=True):
                done[i] = jax.tree.unflatten(jax.tree.structure([rows[i][k] for k in results]), row)
        return done


def _one(x: jax.Array) -> jax.Array:
    return x[None]


def _where_they_lie(fn: Callable, stacks: Sequence[Any], shared: Sequence[Any]) -> Any:
    """Applies a function to stacks that are divided along their first axes."""
    sharding = jax.typeof(jax.tree.leaves(stacks)[0]).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:  # matrix decompositions have no rule for types
        first = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0]))  # which names the mesh, too
        fn = jax.sharding.auto_axes(fn, out_sharding=first)
    return fn(*stacks, *shared)


def by_owners(
    fn: Callable,
    rows: Sequence[Sequence[jax.Array]],
    mesh: AnyMesh,
    results: Sequence[int] = (0,),
    sent: dict[tuple[int, ...], tuple] | None = None,
    stack: Callable[[jax.Array], jax.Array] = _one,
) -> list[list[jax.Array]]:
    """Returns the results of `fn` for every row, computed by owners, placed as some of the row's arrays are.

    Rows of the same shapes are stacked, array by array; the stacks are padded and divided among the devices, each
    applies `fn` to its part, and the results go back. An array that is split moves one mesh axis at a time from its
    sides to the stack's axis, which is an all-to-all; XLA would gather it whole if all axes moved at once.

    Args:
        fn: a function of stacks, of shape (n, ...) each, that returns a sequence of stacks and treats each entry by
            itself.
        rows: for every leaf, arrays that are worked on together.
        mesh: the mesh they lie on, from `owners_mesh`.
        results: for each result, the number of the array in a row whose shape and placement it has.
        sent: what was sent before, by the arrays it was made of.
        stack: makes a stack of each array; those of a row have the same length.
    """
    names = tuple(name for name, size in mesh.shape.items() if size > 1)
    send, bring = (_send, _bring) if AxisType.Explicit in mesh.axis_types else (_send_auto, _bring_auto)
    sent = {} if sent is None else sent
    found: list[list[jax.Array]] = [[] for _ in rows]
    stacked = [[*map(stack, row)] for row in rows]
    groups: dict[Any, list[int]] = {}
    for i, row in enumerate(stacked):
        groups.setdefault(tuple((x.shape[1:], x.dtype) for x in row), []).append(i)
    for some in groups.values():
        moved, ways = [], []
        for k in range(len(rows[some[0]])):
            arrays = [rows[i][k] for i in some]
            key = tuple(map(id, arrays))  # which live as long as the entry does
            if key not in sent:
                sent[key] = (*send(_joined([stacked[i][k] for i in some], mesh), names, mesh), arrays)
            moved.append(sent[key][0])
            ways.append(sent[key][1])
        done = [bring(x, ways[k], names) for x, k in zip(fn(*moved), results, strict=True)]
        start = 0
        for i in some:
            n = len(stacked[i][0])
            found[i] = [_place_like(x[start : start + n], rows[i][k]) for x, k in zip(done, results, strict=True)]
            start += n
    return found


def _place_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """Returns x, in the shape of `like`, placed as that is on a mesh."""
    x = x.reshape(like.shape)
    if AxisType.Explicit in jax.typeof(like).sharding.mesh.axis_types:
        return reshard(x, jax.typeof(like).sharding.spec)
    return placed_like(x, like)


def split_among_owners(x: jax.Array) -> jax.Array:
    """Splits an array over all axes of its mesh where its type says how it lies; whole if nothing can be divided."""
    mesh = jax.typeof(x).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types or AxisType.Manual in mesh.axis_types:
        return x
    spec = jax.typeof(x).sharding.spec
    for name, size in mesh.shape.items():  # each on another axis of the array if possible: it moves by itself
        spec = (split_spec(x.shape, spec, [name], mesh.shape) or spec) if size > 1 else spec
    return reshard(x, spec)


def as_stack(x: jax.Array) -> jax.Array:
    """Returns a leaf of matrices in its last two axes as one stack of them, whole along its axis."""
    for axis in range(x.ndim - 2):
        x = replicate(x, axis)
    return x.reshape(-1, *x.shape[-2:])


def _joined(column: Sequence[jax.Array], mesh: AnyMesh) -> jax.Array:
    """Returns stacks as one, padded by its last entry so that the devices divide it."""
    column = _alike(column)
    n = sum(map(len, column))
    pad = [jnp.broadcast_to(column[-1][-1:], (-n % mesh.size, *column[-1].shape[1:]))] if n % mesh.size else []
    return jnp.concatenate([*column, *pad]) if len(column) + len(pad) > 1 else column[0]


def _alike(stacks: Sequence[jax.Array]) -> list[jax.Array]:
    """Reshards stacks whose types say how they lie as most of them are, so that they can be joined."""
    specs = [jax.typeof(x).sharding.spec for x in stacks]
    most, _ = collections.Counter(specs).most_common(1)[0]
    return [reshard(x, most) for x in stacks]


def _send(x: jax.Array, names: Sequence[str], mesh: AnyMesh) -> tuple[jax.Array, list]:
    """Returns a stack divided among owners, and the specs that it had on the way there."""
    specs = [jax.typeof(x).sharding.spec]
    for name in names:  # in one order, so that arrays of one row come to the same device
        specs.append(_moved(specs[-1], name))
        x = reshard(x, specs[-1])
    return x, specs


def _bring(x: jax.Array, way: list, names: Sequence[str]) -> jax.Array:
    for spec in reversed(way):
        x = reshard(x, spec)
    return x


def _moved(spec: PartitionSpec, name: str) -> PartitionSpec:
    """Returns the spec of a stack with one mesh axis moved to the axis of the stack."""
    first, *sides = (tuple(x for x in axis_names(entry) if x != name) for entry in spec)
    return PartitionSpec(*map(entry_of, ((*first, name), *sides)))


def _send_auto(x: jax.Array, names: Sequence[str], mesh: AnyMesh) -> tuple[jax.Array, list]:
    """Does the same where only the compiler knows how the stack lies; returns the stack as it was on the way."""
    way = []
    for k in range(len(names)):  # first whole along its axis, or it would be cut while it is put together
        x = _constrained(x, mesh, names[:k] or None, OPEN)
        way.append(x)
    return _constrained(x, mesh, names, None), way


def _bring_auto(x: jax.Array, way: list, names: Sequence[str]) -> jax.Array:
    x = _constrained(x, jax.typeof(way[0]).sharding.mesh, names, None)
    for stage in reversed(way):
        x = placed_like(x, stage)
    return x


def _constrained(x: jax.Array, mesh: AnyMesh, first: Any, others: Any) -> jax.Array:
    spec = PartitionSpec(first, *[others] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
