"""Arrays whose explicit sharding, or variation inside `shard_map`, is part of their type."""

import math
from collections.abc import Collection
from typing import Any

import jax


def replicate(x: Any, axis: int | None = None) -> Any:
    """The array, or one axis of it, whole on every device, where its sharding is part of its type and cuts it."""
    spec = jax.typeof(x).sharding.spec
    kept = [None] * len(spec) if axis is None else [*spec[:axis], None, *spec[axis + 1 :]]
    return x if [*spec] == kept else jax.sharding.reshard(x, jax.sharding.PartitionSpec(*kept))


def reshard_like(x: jax.Array, like: Any) -> jax.Array:
    """What was computed of `whole(like)`, sharded as `like` is where that is part of its type."""
    sharding = jax.typeof(like).sharding
    return jax.sharding.reshard(x, sharding) if any(axis is not None for axis in sharding.spec) else x


def varying_axes(x: Any) -> frozenset[str]:
    """The axes over which `shard_map` knows that an array differs; none where it does not keep track."""
    return getattr(getattr(_type(x), "manual_axis_type", None), "varying", frozenset())


def _type(x: Any) -> Any:
    """The type of an array; a type as it is."""
    return x if hasattr(x, "manual_axis_type") else jax.typeof(x)


def as_varying(x: jax.Array, axes: Collection[str]) -> jax.Array:
    """Declares to `shard_map` that an array may differ over axes over which it did not."""
    return jax.lax.pcast(x, tuple(axes), to="varying") if axes else x


def match_type(x: jax.Array, like: Any) -> jax.Array:
    """The array, of the explicit sharding of `like` and varying in `shard_map` over the same axes."""
    sharding = _type(like).sharding
    if any(axis is not None for axis in getattr(sharding, "spec", ())):
        x = jax.sharding.reshard(x, sharding)
    return as_varying(x, varying_axes(like) - varying_axes(x))


def shard_count(x: jax.Array, axis: int) -> int:
    """How many parts an explicit sharding cuts an axis into; 1 where the sharding is no part of the type."""
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis] or ()
    return math.prod(sharding.mesh.shape[name] for name in ((names,) if isinstance(names, str) else names))
