"""Reads and replaces parts of a nested state by field name, as in `get(state, "mu")`.

The arrays of an nnx state are in variables: reading unwraps them, and setting wraps the new values.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, SequenceKey, keystr

from .leaves import Tree
from .model_trees import boxed_like, unboxed

Path = tuple[Any, ...]
T = TypeVar("T")
Filter = Callable[[Path, Any], bool] | None


@dataclass(frozen=True)
class NamedTupleKey:
    """One key of a path: a field of a NamedTuple, with the name of its class."""

    tuple_name: str
    name: str

    def __str__(self):
        return f".{self.name}"


def get_all_with_path(tree: Tree, key: str, filtering: Filter = None) -> list[tuple[Path, Any]]:
    """Finds all NamedTuples, fields of NamedTuples and entries of dicts with a given name, each with its path.

    Args:
        tree: a state.
        key: the name to look for.
        filtering: `f(path, value)`, which returns True for the values to keep. A path is a tuple of JAX's keys, with
            `NamedTupleKey` for fields; `jax.tree_util.keystr(path)` formats it.

    >>> from functional_opt import adam
    >>> [(keystr(path), int(x)) for path, x in get_all_with_path(adam(1e-3).init({"w": 0.0}), "count")]
    [('[0].count', 0)]
    """
    found = [(path, x) for path, names, x in _nodes(unboxed(tree)) if key in names]
    return found if filtering is None else [(path, x) for path, x in found if filtering(path, x)]


def get(tree: Tree, key: str, default: Any = None, filtering: Filter = None) -> Any:
    """Returns the one value that `get_all_with_path` finds, or `default` if there is none.

    Raises KeyError, listing the paths, if there are several.

    >>> from functional_opt import adam
    >>> int(get(adam(1e-3).init({"w": 0.0}), "count"))
    0
    """
    found = get_all_with_path(tree, key, filtering)
    if len(found) > 1:
        raise KeyError(f"{key!r} is found in several places: {', '.join(keystr(path) for path, _ in found)}")
    return found[0][1] if found else default


def find_one(tree: Tree, cls: type[T], reader: str, missing: str, several: str = "take that of one of them") -> T:
    """Returns the only state of a class in a tree. Raises ValueError with a remedy if there is none or several."""
    leaves = jax.tree.leaves(unboxed(tree), is_leaf=lambda x: isinstance(x, cls))
    found = [x for x in leaves if isinstance(x, cls)]
    if len(found) != 1:
        remedy = several if found else missing
        raise ValueError(f"{reader} needs a state with one {cls.__name__} in it, got {len(found)}: {remedy}")
    return found[0]


def set(tree: Tree, filtering: Filter = None, /, **kwargs: Any) -> Tree:
    """Returns the tree with all values that `get_all_with_path` finds replaced.

    Raises KeyError for a name that is not found, and ValueError for floats in place of the codes of `quantize_state`.

    >>> from functional_opt import adam
    >>> set(adam(1e-3).init({"w": 0.0}), count=3)[0].count
    3
    """
    for key, new in kwargs.items():
        found = get_all_with_path(tree, key, filtering)
        for path, old in found:
            _refuse_floats_for_codes(path, old, new)
        if not found:
            there = sorted({str(names[0]) for path, names, _ in _nodes(tree) if path and _is_named(path[-1])})
            raise KeyError(f"the state has no field {key!r}; its fields are {there}")
    return _set(tree, (), (), kwargs, filtering)


def _refuse_floats_for_codes(path: Path, old: Tree, new: Tree) -> None:
    """Raises ValueError if floats would be stored as codes of `quantize_state`."""
    before, after = (jax.tree.flatten(tree) for tree in (old, new))
    pairs = zip(before[0], after[0], strict=True) if before[1] == after[1] else product(before[0], after[0])
    for x, y in pairs:
        if _dtype(x) in (np.int8, np.uint8) and jnp.issubdtype(_dtype(y), jnp.inexact):
            raise ValueError(
                f"{keystr(path)} holds codes ({_dtype(x)}), but the new value is {_dtype(y)}: set it in "
                "tx.decode(state), where tx is the quantize_state, and store the result with tx.encode; for single "
                "arrays see functional_opt.codes"
            )


def _dtype(x: Any) -> Any:
    return getattr(x, "dtype", np.dtype(type(x)) if isinstance(x, int | float) else np.dtype(object))


def _children(node: Any) -> list[tuple[Any, str, Any]]:
    """Returns `(key, name, child)` for each child of a container; children of a list or a tuple have no name."""
    if hasattr(node, "_fields"):
        return [(NamedTupleKey(type(node).__name__, n), n, getattr(node, n)) for n in node._fields]
    if isinstance(node, dict):
        return [(DictKey(k), k, x) for k, x in node.items()]
    if isinstance(node, list | tuple):
        return [(SequenceKey(i), "", x) for i, x in enumerate(node)]
    return []


def _is_named(key: Any) -> bool:
    return not isinstance(key, SequenceKey)


def _names(name: str, node: Any) -> tuple:
    """Returns the names that find a node: its name in its parent and, for a NamedTuple, the name of its class."""
    return (*([name] if name != "" else []), *([type(node).__name__] if hasattr(node, "_fields") else []))


def _nodes(tree: Tree) -> Iterator[tuple[Path, tuple, Any]]:
    yield (), _names("", tree), tree
    yield from _below(tree, ())


def _below(node: Any, path: Path) -> Iterator[tuple[Path, tuple, Any]]:
    """Yields the children of a container, then everything inside them."""
    children = [((*path, key), name, x) for key, name, x in _children(node)]
    yield from ((child, _names(name, x), x) for child, name, x in children)
    for child, _, x in children:
        yield from _below(x, child)


def _set(node: Any, path: Path, names: tuple, values: dict, filtering: Filter) -> Any:
    for name in names or _names("", node):
        if name in values and (filtering is None or filtering(path, node)):
            return boxed_like(values[name], node)
    children = [_set(x, (*path, key), _names(n, x), values, filtering) for key, n, x in _children(node)]
    if hasattr(node, "_fields"):
        return type(node)(*children)
    if isinstance(node, dict):
        return type(node)(zip(node, children, strict=True))
    return type(node)(children) if isinstance(node, list | tuple) else node
