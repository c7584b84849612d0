"""Split: the slots of an optimizer in pieces on the devices of a mesh, for compiled steps."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ...placement.devices import Devices
from ...placement.like import placed_like
from ...placement.mesh import short_spec, spec_of, whole_spec
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
        self._devices = Devices(mesh, axis)

    def place(self, engine: Engine, variables: Sequence[Variable]) -> None:
        """Places variables that are not on the mesh yet on all of its devices, and slots in pieces."""
        for v in variables:
            if not self._devices.have(v._settled()):
                v.assign(self._devices.put(v._settled()))
        engine.keep(jax.tree.map(self._placed, engine.state()), engine.clock())

    def batch(self, arrays: Sequence[Any]) -> list[Any]:
        """Returns the arrays of a batch, split along their first axis. Raises ValueError for one that cannot be."""
        for x in arrays:
            if not self._devices.divide(x):
                raise ValueError(
                    f"an array of the batch has the shape {jnp.shape(x)}; the {self._devices.parts} devices of "
                    f"{self._devices.axis!r} must divide its first axis"
                )
        return [self._devices.rows(x) for x in arrays]

    def keep(self, pure: Callable) -> Callable:
        """Returns a program that gives what it assigns the placement that it had before."""

        def run(donated: list, kept: list, lifted: list, batch: list) -> tuple[list, list]:
            assigned, out = pure(donated, kept, lifted, batch)
            if len(assigned) == len(donated):  # not while it is only found out what the program assigns
                assigned = [placed_like(x, old) for x, old in zip(assigned, donated, strict=True)]
            return assigned, out

        return run

    def _placed(self, x: Any) -> Any:
        if not isinstance(x, jax.Array):
            return x
        devices = self._devices
        spec = spec_of(x) if devices.have(x) else whole_spec(x)
        if x.size >= MIN_SIZE:
            spec = split_spec(x.shape, spec, [devices.axis], devices.mesh.shape) or spec
        return devices.put(x, *short_spec(spec))
