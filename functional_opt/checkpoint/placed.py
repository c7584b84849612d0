"""Where restored arrays lie: params as they are asked for, and slots beside them."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from .entries import Entry


def sharding_of(like: Any) -> Any:
    """Returns the sharding that an array or an abstract array asks for; None if it may lie anywhere.

    >>> sharding_of(jax.ShapeDtypeStruct((2,), "float32")) is None
    True
    """
    if isinstance(like, jax.Array) and not getattr(like, "committed", True):
        return None
    sharding = getattr(like, "sharding", None)
    return sharding if isinstance(sharding, jax.sharding.Sharding) else None


def shardings_of(entries: list[Entry]) -> list[Any]:
    """Returns the sharding of each entry; None where it may lie anywhere.

    A slot of its param's shape lies as the param does. If all params are on one mesh, so are the other slots, each
    whole on every device.

    >>> from functional_opt import adam
    >>> from .entries import entries_of
    >>> shardings_of(entries_of(params := {"w": jax.numpy.ones(2)}, adam(0.1).init(params)))
    [None, None, None, None]
    """
    params = {entry.path: entry.value for entry in entries if not entry.slot}
    meshes = {x.sharding.mesh for x in params.values() if isinstance(sharding_of(x), NamedSharding)}
    everywhere = NamedSharding(meshes.pop(), PartitionSpec()) if len(meshes) == 1 else None
    return [_of_slot(entry, params, everywhere) if entry.slot else sharding_of(entry.value) for entry in entries]


def _of_slot(entry: Entry, params: Mapping[str | None, Any], otherwise: Any) -> Any:
    """Returns the sharding of a slot. It follows its param only as far as shapes tell."""
    param = params.get(entry.path)
    return sharding_of(param) if param is not None and entry.value.shape == param.shape else otherwise


def put(x: Any, sharding: Any) -> Any:
    """Returns an array in a sharding; as it is if that is None."""
    return x if sharding is None or getattr(x, "sharding", None) == sharding else jax.device_put(x, sharding)
