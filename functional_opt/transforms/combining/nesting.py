"""The structure of a transformation: its links at any depth, their states, and edits of them."""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.tree_util import DictKey, GetAttrKey

from ...core.checks import Static
from ...core.transformation import GradientTransformation, transformation
from .chain import named_chain
from .select import partition


def children(tx: Any) -> list[tuple[str, GradientTransformation]]:
    """Returns the transformations directly inside one, each with its path from there.

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
    """Returns a copy with every transformation directly inside it edited; the same object if nothing changes."""

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
    """Returns whether two containers hold the very same transformations."""
    if isinstance(x, dict):
        x, y = tuple(x.values()), tuple(y.values())
    return x is y or (isinstance(x, tuple | list) and all(a is b for a, b in zip(x, y, strict=True)))


def walk(tx: Any, state: Any = None, path: str = "", labels: tuple = ()) -> Iterator[tuple[str, tuple, Any, Any]]:
    """Yields `(path, labels, transformation, state)` for a transformation and all inside it, outer ones first.

    `labels` are the labels of the partitions and the names of the chains on the way there. The state is None if the
    outer transformation's `init` does not expose its children's states.
    """
    yield path, labels, tx, state
    inside = children(tx)
    places = _places(jax.tree.structure(_marked(tx))) if inside else ()
    for i, (step, child) in enumerate(inside):
        name = (tx.names[i],) if isinstance(tx, named_chain) else ()
        name = (list(tx.transforms)[i],) if isinstance(tx, partition) else name
        yield from walk(child, _at(state, places[i]), path + step, labels + name)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Place:
    """Marks the place of the i-th child's state in the state of a transformation."""

    i: int


@transformation
class _mark(GradientTransformation):
    """Stands in for the i-th child of a transformation, to find where the child's state is kept."""

    i: Static[int]

    def init(self, params):
        return _Place(self.i)

    def update(self, updates, state, params=None, **extra):
        return updates, state


def _marked(tx: Any) -> Any:
    """Returns the transformation with a mark in place of each child."""
    marks = iter(range(len(children(tx))))
    return with_children(tx, lambda _: _mark(next(marks)))


@functools.lru_cache(256)
def _places(marked: Any) -> list[tuple | None]:
    """Returns the path of each child's state in the transformation's, given the tree structure with marks."""
    tx, found = marked.unflatten([0.0] * marked.num_leaves), {}
    with contextlib.suppress(Exception):  # an init that needs real params or numbers shows no places
        state = jax.eval_shape(tx.init, {})
        leaves, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda x: isinstance(x, _Place))
        found = {x.i: path for path, x in leaves if isinstance(x, _Place)}
    return [found.get(i) for i in range(len(children(tx)))]


def _at(state: Any, place: tuple | None) -> Any:
    """Returns the part of a state at a place, or None."""
    key: Any
    try:
        for key in place or ():
            named = isinstance(key, GetAttrKey)
            state = getattr(state, key.name) if named else state[key.key if isinstance(key, DictKey) else key.idx]
    except (AttributeError, KeyError, IndexError, TypeError):  # no state, or one of another structure
        return None
    return None if place is None else state
