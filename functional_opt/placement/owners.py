"""Owners: each device of a mesh works on whole matrices of its own."""

import collections
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ..core.sharding import replicate, reshard
from .like import placed_like
from .mesh import AnyMesh, axis_names, entry_of

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


def by_owners(fn: Callable, leaves: Sequence[jax.Array], mesh: AnyMesh) -> list[jax.Array]:
    """Returns `fn` of every leaf, computed by owners, placed as the leaf is.

    Matrices of one shape are stacked, the stack is padded with zeros and divided among the devices, each applies `fn`
    to its part, and the results go back. A matrix that is split moves one mesh axis at a time from its sides to the
    stack's axis, which is an all-to-all; XLA would gather it whole if all axes moved at once.

    Args:
        fn: a function of stacks of matrices, shape (n, rows, columns), that treats each matrix by itself and maps
            zeros to finite numbers.
        leaves: matrices, or stacks of them in their last two axes.
        mesh: the mesh they lie on, from `owners_mesh`.
    """
    explicit = AxisType.Explicit in mesh.axis_types
    names = tuple(name for name, size in mesh.shape.items() if size > 1)
    results: list[Any] = list(leaves)
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        groups.setdefault((x.shape[-2:], x.dtype), []).append(i)
    for some in groups.values():
        stacks = [_stack(leaves[i]) for i in some]
        if explicit:
            stacks = _alike(stacks)
        stack = stacks[0] if len(stacks) == 1 else jnp.concatenate(stacks)
        stack = jnp.pad(stack, ((0, -len(stack) % mesh.size), (0, 0), (0, 0)))
        done = _explicitly(fn, stack, names) if explicit else _automatically(fn, stack, names, mesh)
        start = 0
        for i, own in zip(some, stacks, strict=True):
            results[i] = _placed(done[start : start + len(own)], leaves[i], explicit)
            start += len(own)
    return results


def _stack(x: jax.Array) -> jax.Array:
    """Returns a leaf as one stack, whole along its axis."""
    for axis in range(x.ndim - 2):
        x = replicate(x, axis)
    return x[None] if x.ndim == 2 else x.reshape(-1, *x.shape[-2:]) if x.ndim > 3 else x


def _alike(stacks: list[jax.Array]) -> list[jax.Array]:
    """Reshards stacks as most of them are, so that they can be joined."""
    specs = [jax.typeof(x).sharding.spec for x in stacks]
    most, _ = collections.Counter(specs).most_common(1)[0]
    return [reshard(x, most) for x in stacks]


def _placed(x: jax.Array, like: jax.Array, explicit: bool) -> jax.Array:
    x = x[0] if like.ndim == 2 else x.reshape(like.shape)
    if not explicit:
        return placed_like(x, like)
    return reshard(x, jax.typeof(like).sharding.spec)


def _explicitly(fn: Callable, stack: jax.Array, names: Sequence[str]) -> jax.Array:
    specs = [jax.typeof(stack).sharding.spec]
    split = [name for entry in specs[0] for name in axis_names(entry)]
    for name in (*split, *(name for name in names if name not in split)):
        specs.append(_moved(specs[-1], name))
    for spec in specs[1:]:
        stack = reshard(stack, spec)
    stack = fn(stack)
    for spec in reversed(specs[:-1]):
        stack = reshard(stack, spec)
    return stack


def _moved(spec: PartitionSpec, name: str) -> PartitionSpec:
    """Returns the spec of a stack with one mesh axis moved to the axis of the stack."""
    first, *sides = (tuple(x for x in axis_names(entry) if x != name) for entry in spec)
    return PartitionSpec(*map(entry_of, ((*first, name), *sides)))


def _automatically(fn: Callable, stack: jax.Array, names: Sequence[str], mesh: AnyMesh) -> jax.Array:
    def place(x: jax.Array, *entries: Any) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*entries)))

    stages = []
    for k in range(len(names)):  # first whole along its axis, or it would be cut while it is put together
        stack = place(stack, tuple(names[:k]) or None, OPEN, OPEN)
        stages.append(stack)
    stack = place(fn(place(stack, tuple(names), None, None)), tuple(names), None, None)
    for stage in reversed(stages):
        stack = placed_like(stack, stage)
    return stack
