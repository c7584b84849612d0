"""Where restored arrays lie: params as they are asked for, and slots beside them."""

from collections.abc import Mapping
from typing import Any

import jax

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


def sharding_of_slot(entry: Entry, params: Mapping[str | None, Any]) -> Any:
    """Returns the sharding of a slot: that of the param it belongs to, if it has its shape; otherwise None.

    Args:
        entry: the slot; its value has the shape.
        params: the params by path, abstract or not.
    """
    param = params.get(entry.path)
    return sharding_of(param) if param is not None and entry.value.shape == param.shape else None


def put(x: Any, sharding: Any) -> Any:
    """Returns an array in a sharding; as it is if that is None."""
    return x if sharding is None or getattr(x, "sharding", None) == sharding else jax.device_put(x, sharding)
