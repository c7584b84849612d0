"""placed_like: gives an array the placement of another one that only the compiler knows."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import core
from jax.sharding import NamedSharding, PartitionSpec

from ..core.leaves import Tree, is_nothing
from ..core.sharding import on_automatic_axes, replicate, shard_count


def placed_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """Returns x, placed as `like` is on the automatic axes of its mesh.

    Types do not say where an array lies on automatic axes. The compiler does: it runs this as an operation whose
    result has the sharding of `like`, whatever that of x. With a plain constraint one would need to name that
    sharding, and with none the compiler places the sum of a param and a split update as the update is.
    """
    if not isinstance(x, core.Tracer) and not isinstance(like, core.Tracer):
        return jax.device_put(x, like.sharding)
    mesh = jax.typeof(like).sharding.mesh
    x, like = (y if mesh.empty else _divisible(y, mesh) for y in (x, like))
    return _placed_like(x, like) if x.ndim else x


def _sizes(mesh: Any) -> list[int]:
    return [size for size in mesh.shape.values() if size > 1]


def _divisible(x: jax.Array, mesh: Any) -> jax.Array:
    """Returns x, whole along axes whose lengths no axis of the mesh divides.

    The compiler may split an array that is computed inside a program, or an argument that lies nowhere yet, unevenly,
    but JAX refuses that at an operation.
    """
    whole = [all(n % size for size in _sizes(mesh)) for n in x.shape]
    if mesh.size == 1 or not any(whole):
        return x
    spec = PartitionSpec(*(None if yes else PartitionSpec.UNCONSTRAINED for yes in whole))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def unless_split(x: jax.Array, axis: int, parts: int) -> jax.Array:
    """Replicates an axis that is to be cut into parts, unless the devices divide the number of parts.

    On automatic axes, devices that hold pieces of several parts would have a sharding that no spec describes. If an
    axis of the mesh has as many devices as there are parts, the parts are split over it.
    """
    x = x if parts % shard_count(x, axis) == 0 else replicate(x, axis)
    mesh = jax.typeof(x).sharding.mesh
    if not (isinstance(x, core.Tracer) and on_automatic_axes(x)) or parts % mesh.size == 0:
        return x
    over = next((name for name, size in reversed(mesh.shape.items()) if size == parts), None)
    spec = [over if i == axis else PartitionSpec.UNCONSTRAINED for i in range(x.ndim)]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def keep_placement(tree: Tree, like: Tree) -> Tree:
    """Returns a tree placed as another one with its structure on automatic axes, where the compiler might move it.

    For slots that lie otherwise than the leaves they are computed from.
    """

    def leaf(x: Any, old: Any) -> Any:
        is_number = hasattr(old, "dtype") and jnp.issubdtype(old.dtype, jnp.number)
        if not (is_number and on_automatic_axes(old)):
            return x
        mesh = jax.typeof(old).sharding.mesh
        clear = all(n % mesh.size == 0 or all(n % size for size in _sizes(mesh)) for n in old.shape)
        return placed_like(x, old) if clear else x  # else the compiler could split it unevenly: see `_divisible`

    return jax.tree.map(leaf, tree, like, is_leaf=is_nothing)


@jax.custom_jvp
def _placed_like(x: jax.Array, like: jax.Array) -> jax.Array:
    return _batched(x, like)


@_placed_like.defjvp
def _derivative(primals: Any, tangents: Any) -> Any:
    return _placed_like(*primals), tangents[0]  # wherever that lies


@jax.custom_batching.custom_vmap
def _batched(x: jax.Array, like: jax.Array) -> jax.Array:
    return _operation(x.ndim)(x, like)


@_batched.def_vmap
def _rows(size: int, batched: list[bool], x: jax.Array, like: jax.Array) -> tuple[jax.Array, bool]:
    pairs = zip((x, like), batched, strict=True)
    return placed_like(*(y if rows else jnp.broadcast_to(y, (size, *y.shape)) for y, rows in pairs)), True


@functools.cache
def _operation(ndim: int) -> Any:
    from jax.experimental.custom_partitioning import custom_partitioning  # most programs do not need it

    own, shared = (" ".join(f"{letter}{i}" for i in range(ndim)) for letter in "xy")

    @custom_partitioning
    def operation(x, like):
        return x

    def partition(mesh, args, result):
        return mesh, lambda x, like: x, result.sharding, (result.sharding, args[1].sharding)

    operation.def_partition(partition=partition, sharding_rule=f"{own}, {shared} -> {shared}")
    return operation
