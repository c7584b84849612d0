"""Memory that a step may reuse: arrays that nobody but their variable holds."""

import sys
from typing import Any

import jax
import jax.numpy as jnp


def _references(arrays: list[Any]) -> list[int]:
    return list(map(sys.getrefcount, arrays))


# what `_references` counts for an array held by one owner and the list
_OWNED = _references([*(_owner := [object()])])[0]


def to_donate(arrays: list[Any]) -> list[Any]:
    """The arrays of a list whose one other owner will replace them; a copy of each that someone else holds too.

    That makes variables copy-on-write: what a user took out of one stays valid.
    """
    counts = _references(arrays)
    if max(counts, default=0) <= _OWNED:
        return arrays
    return [jnp.copy(x) if n > _OWNED else x for n, x in zip(counts, arrays, strict=True)]


def donated_tree(tree: Any) -> Any:
    """`to_donate` for the leaves of a tree."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(to_donate(leaves))
