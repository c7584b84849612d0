"""Link: what a transformation says of itself, so that the kernel can do it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

OPS = (  # numbered as in cpp/rules.h
    "scale",
    "clip",
    "decay",
    "trace",
    "nesterov",
    "adam",
    "nadam",
    "lion",
    "rms",
    "rms_outside",
    "rss",
    "rss_outside",
    "add",
    "update",
)


KINDS = ("float32", "bfloat16", "int8", "uint8", "int4", "uint4")  # of slots, numbered as in cpp/arrays.h


class Slot(NamedTuple):
    """A slot of one leaf: how it is stored, one of KINDS for the kernel to take it, and its shape."""

    data: Any
    kind: str
    shape: tuple[int, ...]
    scale: jax.Array | None = None  # of codes: the largest |x| of every block of a row, the blocks its last axis


class Slots(NamedTuple):
    """A tree of slots that are not all stored as they are, `of(x, y)` for a leaf of `data` and its part of `more`."""

    data: Any
    more: Any
    of: Callable[[Any, Any], Slot]


class Link(NamedTuple):
    """One operation of cpp/rules.h on the update of an element.

    op: its name, one of OPS.
    scalars: the numbers it reads, float32 or Python's; computed by the same expressions as in `update`.
    slots: the trees of the state that it reads and replaces, or `Slots`.
    only: a tree of bools, which leaves it is done for; all if None.
    squares: for a scale by the global norm: a function of Σ|g|² of each leaf and of the scalar to the factor.
    """

    op: str
    scalars: tuple = ()
    slots: tuple = ()
    only: Any = None
    squares: Callable[[Any, Any], Any] | None = None


def links_of(tx: Any, state: Any, params: Any) -> tuple[Link, ...] | None:
    """What `tx.as_kernel(state, params)` says; None if it has none, or one for another `update` than its own."""
    for cls in type(tx).__mro__:
        if "update" in vars(cls):
            return tx.as_kernel(state, params) if "as_kernel" in vars(cls) else None
    return None


def links_in_turn(transforms: tuple, states: Any, params: Any) -> tuple[Link, ...] | None:
    """The links of a chain, those of chains inside it among them; None if one of them has none."""
    if not (isinstance(states, tuple) and len(states) == len(transforms)):
        return None
    found: list[Link] = []
    for tx, state in zip(transforms, states, strict=True):
        links = links_of(tx, state, params)
        if links is None:
            return None
        found += links
    return tuple(found)


def is_float32(scalar: Any) -> bool:
    """Whether a number times a float32 array is a float32 array of its shape."""
    return np.shape(scalar) == () and jnp.result_type(scalar, jnp.float32) == jnp.float32
