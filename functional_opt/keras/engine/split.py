"""Split: the slots of an optimizer in pieces on the devices of a mesh, for compiled steps."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ...placement.like import placed_like
from ...placement.mesh import full_spec, short_spec, spec_of
from ...placement.split import split_spec
from ..variables.variable import Variable
from .engine import Engine

MIN_SIZE = 1024
"""The least number of elements of a slot to split, as in `functional_opt.shard`."""


class Split:
    """Places variables and slots on a mesh, and keeps them there; the batch is split along its first axis.

    Args:
        mesh: the devices. Its axes count as automatic: jax.jit divides the work.
        axis: the mesh axis over which slots and batch are split.
    """

    def __init__(self, mesh: Mesh, axis: str):
        if axis not in mesh.axis_names:
            raise ValueError(f"shard must be one of the mesh's axes, {', '.join(mesh.axis_names)}, got {axis!r}")
        self._mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
        self._axis = axis

    def place(self, engine: Engine, variables: Sequence[Variable]) -> None:
        """Places variables that are not on the mesh yet on all of its devices, and slots in pieces."""
        for v in variables:
            if not self._is_here(v._settled()):
                v.assign(jax.device_put(v._settled(), NamedSharding(self._mesh, PartitionSpec())))
        engine.keep(jax.tree.map(self._placed, engine.state()), engine.clock())

    def batch(self, arrays: Sequence[Any]) -> list[Any]:
        """Returns the arrays of a batch, split along their first axis. Raises ValueError for one that cannot be."""
        n = self._mesh.shape[self._axis]
        for x in arrays:
            if jnp.ndim(x) and len(x) % n:
                raise ValueError(
                    f"an array of the batch has the shape {jnp.shape(x)}; the {n} devices of {self._axis!r} must "
                    "divide its first axis"
                )
        rows = NamedSharding(self._mesh, PartitionSpec(self._axis))
        return [jax.device_put(x, rows) if jnp.ndim(x) else x for x in arrays]

    def keep(self, pure: Callable) -> Callable:
        """Returns a program that gives what it assigns the placement that it had before."""

        def run(donated: list, kept: list, lifted: list, batch: list) -> tuple[list, list]:
            assigned, out = pure(donated, kept, lifted, batch)
            if len(assigned) == len(donated):  # not while it is only found out what the program assigns
                assigned = [placed_like(x, old) for x, old in zip(assigned, donated, strict=True)]
            return assigned, out

        return run

    def _is_here(self, x: Any) -> bool:
        sharding = getattr(x, "sharding", None)
        return isinstance(sharding, NamedSharding) and sharding.device_set == set(self._mesh.devices.flat)

    def _placed(self, x: Any) -> Any:
        if not isinstance(x, jax.Array):
            return x
        spec = spec_of(x) if self._is_here(x) else full_spec(PartitionSpec(), x.ndim)
        if x.size >= MIN_SIZE:
            spec = split_spec(x.shape, spec, [self._axis], self._mesh.shape) or spec
        return jax.device_put(x, NamedSharding(self._mesh, short_spec(spec)))
