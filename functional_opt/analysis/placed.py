"""Placed: what the state and an update cost on each device of a mesh, for `explain`."""

import contextlib
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ..core.leaves import Tree
from ..core.transformation import GradientTransformation
from ..placement.mesh import AnyMesh, spec_of
from ..placement.shardings import state_shardings, state_types
from ..placement.traffic import collectives
from .lint import Note

LARGE = 1024
"""The number of elements from which on an array that lies whole on every device is worth a warning."""


@dataclasses.dataclass(frozen=True)
class Placed:
    """The cost on each device. `devices`: their number. `state_bytes`: of the state, on the first device.

    `sent`: the bytes that a device gets in one update by kind of collective operation; None if `update` needs more
    arguments, or the mesh is abstract. `due`: how many more when a part that does not run at every step is due, such
    as the roots of Shampoo. `whole`: the large arrays of the state that lie whole on every device.
    """

    devices: int
    state_bytes: int
    sent: dict[str, int] | None
    whole: tuple[str, ...]
    due: int = 0

    def __str__(self):
        if self.sent is None:
            sends = "what an update sends is not known"
        elif not self.sent:
            sends = "an update sends nothing"
        else:
            kinds = ", ".join(f"{as_bytes(n)} by {kind}" for kind, n in self.sent.items())
            sends = f"in an update it gets {kinds}"
        sends += f", and {as_bytes(self.due)} more when all parts are due" if self.due else ""
        return f"Each of {self.devices} devices has {as_bytes(self.state_bytes)} of the state; {sends}."

    @classmethod
    def of(cls, tx: GradientTransformation, params: Tree, mesh: AnyMesh) -> "Placed":
        """Returns the cost of a transformation for params that lie on a mesh."""
        shardings = jax.tree.leaves(state_shardings(tx, params, mesh))
        types = state_types(tx.init, params, mesh, [spec_of(x) for x in jax.tree.leaves(params)])
        places = jax.tree_util.tree_leaves_with_path(types)
        here, whole = 0, []
        for (path, x), sharding in zip(places, shardings, strict=True):
            here += math.prod(sharding.shard_shape(x.shape)) * _item_size(x)
            if x.size >= LARGE and sharding.is_fully_replicated:
                whole.append(jax.tree_util.keystr(path))
        state = jax.tree.map(_shape, types, jax.tree.unflatten(jax.tree.structure(types), shardings))
        given = jax.tree.map(
            lambda x: _shape(x, NamedSharding(mesh, spec_of(x))) if hasattr(x, "dtype") else None, params
        )
        program = _program(tx, given, state, mesh)
        sent, most = (None if program is None else collectives(program, due) for due in (False, True))
        due = sum((most or {}).values()) - sum((sent or {}).values())
        return cls(mesh.size, here, sent, tuple(whole), due)

    def notes(self) -> tuple[Note, ...]:
        """Returns the warning for what lies whole on every device."""
        if not self.whole:
            return ()
        some = ", ".join(self.whole[:3]) + (f" and {len(self.whole) - 3} more" if len(self.whole) > 3 else "")
        says = (
            f"{some} lie whole on each of the {self.devices} devices; shard splits arrays that have an axis to split"
        )
        return (Note("warning", "whole_on_every_device", "", says),)


def _program(tx: GradientTransformation, params: Tree, state: Any, mesh: AnyMesh) -> str | None:
    with contextlib.suppress(Exception):
        if isinstance(mesh, Mesh):
            with jax.set_mesh(mesh):
                return jax.jit(tx.update).lower(params, state, params).compile().as_text()
    return None


def _shape(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding)


def _item_size(x: Any) -> int:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), x.dtype))
        return x.size * x.dtype.itemsize
    return np.dtype(x.dtype).itemsize


def as_bytes(n: int) -> str:
    """Returns a number of bytes as it is printed, such as `12.3 MB`."""
    if n < 10_000:
        return f"{n:,} B"
    power, unit = next(((p, u) for p, u in ((3, "kB"), (6, "MB")) if n < 10 ** (p + 4)), (9, "GB"))
    return f"{n / 10**power:,.1f} {unit}"
