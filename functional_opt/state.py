"""Parts of a nested state by field name, as `get(state, "mu")`."""

from collections.abc import Iterator
from typing import Any

from .leaves import Tree


def get_all_with_path(tree: Tree, key: str) -> list[tuple[str, Any]]:
    """Every field of a NamedTuple, or entry of a dict, of that name, with its path."""
    return [(path, x) for path, name, x in _fields(tree, "") if name == key]


def get(tree: Tree, key: str, default: Any = None) -> Any:
    """The one field of that name anywhere in a state, or `default` if there is none.

    Raises KeyError with their paths if there are several.

    >>> from functional_opt import adam
    >>> int(get(adam(1e-3).init({"w": 0.0}), "count"))
    0
    """
    found = get_all_with_path(tree, key)
    if len(found) > 1:
        raise KeyError(f"{key!r} stands in several places: {', '.join(path for path, _ in found)}")
    return found[0][1] if found else default


def set(tree: Tree, /, **values: Any) -> Tree:
    """The tree with every field of those names replaced. Raises KeyError for a name that is not there."""
    for key in values:
        if not get_all_with_path(tree, key):
            raise KeyError(f"there is no field {key!r}; there are {sorted({n for _, n, _ in _fields(tree, '')})}")
    return _set(tree, values)


def _children(node: Any) -> list[tuple[str, str, Any]]:
    """`(path, name, child)` of a container; a list's and a tuple's children have no name."""
    if hasattr(node, "_fields"):
        return [(f".{n}", n, getattr(node, n)) for n in node._fields]
    if isinstance(node, dict):
        return [(f"[{k!r}]", k, x) for k, x in node.items()]
    if isinstance(node, list | tuple):
        return [(f"[{i}]", "", x) for i, x in enumerate(node)]
    return []


def _fields(node: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    for step, name, x in _children(node):
        if name:
            yield path + step, name, x
        yield from _fields(x, path + step)


def _set(node: Any, values: dict) -> Any:
    children = [values[n] if n and n in values else _set(x, values) for _, n, x in _children(node)]
    if hasattr(node, "_fields"):
        return type(node)(*children)
    if isinstance(node, dict):
        return type(node)(zip(node, children, strict=True))
    return type(node)(children) if isinstance(node, list | tuple) else node
