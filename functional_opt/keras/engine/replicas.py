"""Replicas: the same code on several devices, along a named axis of `jax.shard_map`, `jax.pmap` or `jax.vmap`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ...core.sharding import varying_axes
from ..variables.indexed_slices import IndexedSlices
from ..variables.variable import Variable

AxisName = str | tuple[str, ...]
AGGREGATIONS = "none", "sum", "mean", "only_first_replica"
SYNCHRONIZATIONS = "auto", "none", "on_write", "on_read"


def is_bound(axis_name: AxisName) -> bool:
    """Returns whether this code runs once for each device of the axis."""
    try:
        jax.lax.axis_index(axis_name)
    except NameError:
        return False
    return True


def summed(grads: Sequence[Any], axis_name: AxisName) -> list[Any]:
    """Sums gradients over the replicas; for sparse gradients, collects the rows of all replicas.

    A gradient that `shard_map` knows to be equal on all devices is already the sum: `shard_map` itself sums the
    gradients of replicated variables. Raises RuntimeError if the axis is not bound.
    """
    if not is_bound(axis_name):
        raise RuntimeError(
            "`apply_gradients()` cannot be called in cross-replica context: gradients are to be summed over the axis "
            f"{axis_name!r}, which is not bound here. Call it inside jax.shard_map, give make_train_step a mesh, or "
            "leave axis_name out: under jax.jit gradients are global"
        )
    return [_sum(g, axis_name) for g in grads]


def _sum(g: Any, axis_name: AxisName) -> Any:
    if isinstance(g, IndexedSlices):
        values, indices = (jax.lax.all_gather(x, axis_name, tiled=True) for x in (g.values, g.indices))
        return IndexedSlices(values, indices, g.dense_shape)
    return g if _is_same(g, axis_name) else jax.lax.psum(g, axis_name)


def vary_over(x: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Marks a value as each replica's own, so that `shard_map` leaves the sum of its gradients to `summed`."""
    if axis_name is None or not is_bound(axis_name) or not _is_same(x, axis_name):
        return x
    return jax.lax.pcast(x, axis_name, to="varying")


def _is_same(x: Any, axis_name: AxisName) -> bool:
    """Returns whether `shard_map` knows an array to be the same along the axis. False if it does not keep track."""
    return bool(varying_axes(jax.lax.axis_index(axis_name)) - varying_axes(jnp.asarray(x)))


class Weight(Variable):
    """A variable that belongs to an optimizer, made by `add_weight`.

    In replicas, a value assigned to it is aggregated over `axis_name`: it becomes the sum, the mean, or the value of
    the first replica. With synchronization "on_read", this is done when `read_value` is called instead.
    """

    def __init__(self, *args: Any, axis_name: AxisName | None, synchronization: str, aggregation: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.synchronization, self.aggregation, self._axis_name = synchronization, aggregation, axis_name

    def assign(self, value, use_locking=False, name=None, read_value=True):
        return super().assign(value if self.synchronization == "on_read" else self._aggregated(value))

    def read_value(self):
        return self._aggregated(self.value) if self.synchronization == "on_read" else self.value

    def _aggregated(self, value: Any) -> Any:
        if self.aggregation == "none" or self._axis_name is None or not is_bound(self._axis_name):
            return value
        value = vary_over(jnp.asarray(value, self.dtype), self._axis_name)
        if self.aggregation == "sum":
            return jax.lax.psum(value, self._axis_name)
        if self.aggregation == "mean":
            return jax.lax.pmean(value, self._axis_name)
        first = jax.lax.axis_index(self._axis_name) == 0
        return jax.lax.psum(jnp.where(first, value, jnp.zeros_like(value)), self._axis_name)


def mode(given: Any, known: tuple[str, ...], argument: str) -> str:
    """Returns a mode from its name or TensorFlow's enumeration member. Raises ValueError for an unknown one."""
    name = str(getattr(given, "name", given)).lower()
    if name not in known:
        raise ValueError(f"{argument} must be one of {[n.upper() for n in known]}, got {given!r}")
    return name
