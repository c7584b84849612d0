"""Finds memory that a step may reuse: arrays that only their variable holds."""

import sys
from typing import Any

import jax.numpy as jnp


def _references(arrays: list[Any]) -> list[int]:
    return list(map(sys.getrefcount, arrays))


# the count of `_references` for an array held only by one owner and the list
_OWNED = _references([*(_owner := [object()])])[0]


def to_donate(arrays: list[Any]) -> list[Any]:
    """Returns arrays that a step may reuse, with a copy in place of each that is held elsewhere too.

    Apart from the list, each array is expected to have one owner, which will replace it. This makes variables
    copy-on-write: an array that a user took from one stays valid.
    """
    counts = _references(arrays)
    if max(counts, default=0) <= _OWNED:
        return arrays
    return [jnp.copy(x) if n > _OWNED else x for n, x in zip(counts, arrays, strict=True)]
