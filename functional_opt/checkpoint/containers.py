"""The containers of params as JSON, so that a checkpoint can be read without a model."""

from typing import Any

import jax

from ..core.leaves import Tree
from ..core.model_trees import is_box


def to_json(tree: Tree, names: list[str | None]) -> Any:
    """Returns the containers of a tree with the names of its leaves, in their order, in place of them.

    Containers of other classes, such as modules, become dicts. A leaf without a name becomes None.

    >>> to_json({"a": [1.0, None], "b": 2.0}, ["a/0", "b"])
    {'dict': [['a', {'list': ['a/0', None]}], ['b', 'b']]}
    """
    rest = iter(names)

    def node(x: Any) -> Any:
        if x is None:
            return None
        if jax.tree_util.all_leaves([x]):
            return next(rest)
        below = jax.tree_util.tree_leaves_with_path(x, is_leaf=lambda y: y is not x)
        if is_box(x) and len(below) == 1:
            return node(below[0][1])
        if type(x) in (list, tuple):
            return {type(x).__name__: [node(y) for y in x]}
        if type(x) is dict and all(type(key) in (str, int) for key in x):
            return {"dict": [[key, node(x[key])] for key in sorted(x)]}
        return {"dict": [[jax.tree_util.keystr(keys, simple=True, separator="/"), node(y)] for keys, y in below]}

    return node(tree)


def from_json(node: Any, leaves: dict[str, Any]) -> Tree:
    """Returns the tree, with leaves by their names. Raises ValueError for anything that `to_json` does not return.

    >>> from_json({"dict": [["a", {"list": ["a/0", None]}], ["b", "b"]]}, {"a/0": 1.0, "b": 2.0})
    {'a': [1.0, None], 'b': 2.0}
    """
    if node is None:
        return None
    if isinstance(node, str) and node in leaves:
        return leaves[node]
    kind, inside = next(iter(node.items())) if isinstance(node, dict) and len(node) == 1 else (None, None)
    if kind in ("list", "tuple") and isinstance(inside, list):
        children = [from_json(x, leaves) for x in inside]
        return children if kind == "list" else tuple(children)
    pairs: list[Any] = inside if kind == "dict" and isinstance(inside, list) else [None]
    if not all(isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (str, int) for pair in pairs):
        raise ValueError(
            f"the manifest's containers must be a dict, a list, a tuple or a param's name, got {node!r:.80}"
        )
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError(f"the manifest's containers have a key twice: {node!r:.80}")
    return {key: from_json(x, leaves) for key, x in pairs}
