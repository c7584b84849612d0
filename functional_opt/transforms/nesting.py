"""What a transformation is made of: its links, their states, and edits of one link in all the nesting."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from ..base import GradientTransformation
from .chain import named_chain
from .select import partition

INNER_STATE = ("inner_state", "inner_opt_state", "base_optimizer_state", "opt_state", "state")
"""What the state of a transformation around another one calls that one's state."""


def children(tx: Any) -> list[tuple[str, GradientTransformation]]:
    """The transformations right within one, each with its path from there.

    >>> from functional_opt import chain, clip, scale
    >>> children(chain(clip(1.0), scale(0.1)))
    [('.transforms[0]', clip(1.0)), ('.transforms[1]', scale(0.1))]
    """
    found = []
    for f in dataclasses.fields(tx) if dataclasses.is_dataclass(tx) else ():
        x = getattr(tx, f.name)
        items = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, tuple | list) else ()
        pairs = [(f".{f.name}", x), *((f".{f.name}[{key!r}]", y) for key, y in items)]
        found += [(path, y) for path, y in pairs if isinstance(y, GradientTransformation)]
    return found


def with_children(tx: Any, edit: Callable[[GradientTransformation], GradientTransformation]) -> Any:
    """A copy with every transformation right within it edited; the same object where no edit changes anything."""

    def edited(x: Any) -> Any:
        if isinstance(x, GradientTransformation):
            return edit(x)
        if type(x) in (tuple, list):
            return type(x)(edited(y) for y in x)
        return {key: edited(y) for key, y in x.items()} if type(x) is dict else x

    inside = {path for path, _ in children(tx)}
    changes = {}
    for f in dataclasses.fields(tx) if inside else ():
        if any(path.startswith(f".{f.name}") for path in inside):
            changes[f.name] = edited(getattr(tx, f.name))
    if all(same(getattr(tx, name), x) for name, x in changes.items()):
        return tx
    tx = copy.copy(tx)
    for name, x in changes.items():
        object.__setattr__(tx, name, x)
    return tx


def same(x: Any, y: Any) -> bool:
    """Whether two containers hold the very same transformations."""
    if isinstance(x, dict):
        x, y = tuple(x.values()), tuple(y.values())
    return x is y or (isinstance(x, tuple | list) and all(a is b for a, b in zip(x, y, strict=True)))


def walk(tx: Any, state: Any = None, path: str = "", labels: tuple = ()) -> Iterator[tuple[str, tuple, Any, Any]]:
    """`(path, labels, transformation, state)` of one and all within it, outer ones first.

    `labels` are the groups of a partition and the names of a chain that lead there. The state is None where a
    transformation from elsewhere does not say, by one of the names in `INNER_STATE`, where it keeps those of others.
    """
    yield path, labels, tx, state
    for i, (step, child) in enumerate(children(tx)):
        inner, name = None, ()
        if isinstance(tx, named_chain):
            inner, name = (state[tx.names[i]] if isinstance(state, dict) else None), (tx.names[i],)
        elif isinstance(tx, partition):
            label = list(tx.transforms)[i]
            inner, name = getattr(state, "inner_states", {}).get(label), (label,)
            inner = getattr(inner, "inner_state", None)
        elif type(state) is tuple and len(state) == len(children(tx)):
            inner = state[i]
        elif len(children(tx)) == 1:
            inner = next((getattr(state, field) for field in INNER_STATE if hasattr(state, field)), None)
        yield from walk(child, inner, path + step, labels + name)
