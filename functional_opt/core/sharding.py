"""Helpers for arrays whose explicit sharding, or variation inside `shard_map`, is part of their type."""

import math
from collections.abc import Callable, Collection
from typing import Any

import jax
from jax import core
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def reshard(x: jax.Array, to: Any) -> jax.Array:
    """Reshards an array on the mesh of its type, which need not be that of `jax.set_mesh`, to a spec or sharding.

    An array whose type has that spec already is returned as it is.
    """
    mesh, spec = jax.typeof(x).sharding.mesh, jax.typeof(x).sharding.spec
    if isinstance(to, PartitionSpec) and [*spec] == [*to]:
        return x
    named = isinstance(to, PartitionSpec) and not mesh.empty
    return jax.sharding.reshard(x, NamedSharding(mesh, to) if named else to)


def on_automatic_axes(x: Any) -> bool:
    """Returns whether an array lies on a mesh of several devices with axes on which only the compiler knows where."""
    mesh = jax.typeof(x).sharding.mesh
    kinds = zip(mesh.axis_types, mesh.shape.values(), strict=True)
    return any(kind == AxisType.Auto and size > 1 for kind, size in kinds)


def replicate(x: Any, axis: int | None = None) -> Any:
    """Replicates an array, or one axis of it, if its type has an explicit sharding that splits it."""
    spec = jax.typeof(x).sharding.spec
    kept = [None] * len(spec) if axis is None else [*spec[:axis], None, *spec[axis + 1 :]]
    return reshard(x, PartitionSpec(*kept))


def replicate_from(x: jax.Array, axis: int) -> jax.Array:
    """Replicates an axis and those after it of an array whose type has an explicit sharding that splits them."""
    spec = jax.typeof(x).sharding.spec
    return reshard(x, PartitionSpec(*spec[:axis], *[None] * (x.ndim - axis)))


def split_as(x: jax.Array, like: jax.Array) -> jax.Array:
    """Splits the axes of an array as the type of `like` says, which has as many, where their lengths allow it."""
    spec = jax.typeof(like).sharding.spec
    if x.ndim != len(spec) or all(names is None for names in spec):
        return x
    fits = [names if x.shape[axis] % shard_count(like, axis) == 0 else None for axis, names in enumerate(spec)]
    return reshard(x, PartitionSpec(*fits))


def reshard_like(x: jax.Array, like: Any) -> jax.Array:
    """Shards x, which was computed from `replicate(like)`, as `like` is sharded, if that is part of its type."""
    sharding = jax.typeof(like).sharding
    return reshard(x, sharding) if any(axis is not None for axis in sharding.spec) else x


def sharded_by_compiler(fn: Callable, x: jax.Array, *others: Any) -> jax.Array:
    """Returns `fn(x, *others)`, sharded as x is; on explicit axes too, the compiler shards what lies between."""
    sharding = jax.typeof(x).sharding
    if any(axis is not None for axis in sharding.spec):
        fn = jax.sharding.auto_axes(fn, out_sharding=sharding)
    return fn(x, *others)


def varying_axes(x: Any) -> frozenset[str]:
    """Returns the axes over which `shard_map` knows that an array differs; none if it does not track them."""
    return getattr(getattr(_type(x), "manual_axis_type", None), "varying", frozenset())


def _type(x: Any) -> Any:
    """Returns the type of an array; a type as it is."""
    return x if hasattr(x, "manual_axis_type") else jax.typeof(x)


def as_varying(x: jax.Array, axes: Collection[str]) -> jax.Array:
    """Declares to `shard_map` that an array may differ over axes over which it was the same before."""
    return jax.lax.pcast(x, tuple(axes), to="varying") if axes else x


def vary_like(tree: Any, like: Any) -> Any:
    """Lets every array of a tree vary over the axes over which the leaves of another do, for loops in `shard_map`."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    axes = frozenset().union(*(varying_axes(x) for x in jax.tree.leaves(like) if isinstance(x, core.Tracer)))
    return jax.tree.map(lambda x: as_varying(x, axes - varying_axes(x)) if isinstance(x, jax.Array) else x, tree)


def match_type(x: jax.Array, like: Any) -> jax.Array:
    """Gives an array the explicit sharding of `like`, and makes it vary over the same axes in `shard_map`."""
    sharding = _type(like).sharding
    if any(axis is not None for axis in getattr(sharding, "spec", ())):
        x = reshard(x, sharding)
    return as_varying(x, varying_axes(like) - varying_axes(x))


def shard_count(x: jax.Array, axis: int) -> int:
    """Returns into how many parts an explicit sharding splits an axis; 1 if the sharding is not part of the type."""
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis] or ()
    return math.prod(sharding.mesh.shape[name] for name in ((names,) if isinstance(names, str) else names))
