"""Devices: the mesh of a compiled step, and the axis over which its state and its batch are split."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


class Devices:
    """Places arrays on a mesh whose axes count as automatic: jax.jit divides the work.

    Raises ValueError for an axis that the mesh does not have.
    """

    def __init__(self, mesh: Mesh, axis: str):
        if axis not in mesh.axis_names:
            raise ValueError(f"shard must be one of the mesh's axes, {', '.join(mesh.axis_names)}, got {axis!r}")
        self.mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
        self.axis, self.parts = axis, mesh.shape[axis]

    def have(self, x: Any) -> bool:
        """Returns whether an array lies on these devices."""
        sharding = getattr(x, "sharding", None)
        return isinstance(sharding, NamedSharding) and sharding.device_set == set(self.mesh.devices.flat)

    def put(self, x: Any, *spec: Any) -> jax.Array:
        """Returns an array placed by a spec, whole on every device without one."""
        return jax.device_put(x, NamedSharding(self.mesh, PartitionSpec(*spec)))

    def divide(self, x: Any) -> bool:
        """Returns whether the rows of an array can be split; a scalar has none."""
        return not jnp.ndim(x) or len(x) % self.parts == 0

    def rows(self, x: Any) -> Any:
        """Returns an array of the batch with its rows split; a scalar as it is."""
        return self.put(x, self.axis) if jnp.ndim(x) else x
