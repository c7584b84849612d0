"""Handles trees from model libraries: boxes, which are not part of a path, and modules, which are callable trees.

Nothing here imports such a library: boxes and modules are recognized by their attributes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from .leaves import Tree, is_inexact, is_nothing, zip_leaves
from .value import is_value


def is_box(x: Any) -> bool:
    """Returns whether x holds an array with metadata: a variable of nnx, `nn.Partitioned` and the like."""
    return hasattr(type(x), "replace_boxed") or hasattr(type(x), "get_metadata")


def children_of(node: Any) -> list[Any]:
    """Returns the children of a pytree node of any kind; an empty list for a leaf.

    >>> children_of({"a": (1, 2), "b": None}), children_of(3)
    ([(1, 2), None], [])
    """
    inside = jax.tree.leaves(node, is_leaf=lambda x: x is not node)
    return [] if len(inside) == 1 and inside[0] is node else inside


def unboxed(tree: Tree) -> Tree:
    """Returns the tree with every box replaced by its contents; the same object if there are no boxes."""
    if not any(map(is_box, jax.tree.leaves(tree, is_leaf=is_box))):
        return tree

    def content(x: Any) -> Any:
        return unboxed(inside[0]) if is_box(x) and len(inside := children_of(x)) == 1 else x

    return jax.tree.map(content, tree, is_leaf=is_box)


def boxed_like(tree: Tree, like: Tree) -> Tree:
    """Puts a tree with the structure of `unboxed(like)` into the boxes of `like`; returns any other tree as it is."""
    bare = unboxed(like)
    if bare is like or jax.tree.structure(bare) != jax.tree.structure(tree):
        return tree
    return jax.tree.structure(like).unflatten(jax.tree.leaves(tree))


def names(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """Returns the path of every leaf as users write it, such as `encoder/layer_0/bias`, without boxes.

    >>> names({"layers": [{"w": 1.0}, {"w": 2.0}], "value": 3.0})
    ['layers/0/w', 'layers/1/w', 'value']
    """
    return [name for name, _ in named_leaves(tree, is_leaf)]


def named_leaves(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """Returns every leaf with its path, in the order of `jax.tree.leaves`. See `names`."""
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in _walk(tree, is_leaf)]


def _walk(tree: Tree, is_leaf: Callable[[Any], bool] | None) -> list[tuple[tuple, Any]]:
    def stops(x: Any) -> bool:
        return is_box(x) or (is_leaf is not None and is_leaf(x))

    found = []
    for path, x in jax.tree_util.tree_leaves_with_path(tree, stops):
        if not is_box(x) or (is_leaf is not None and is_leaf(x)):
            found.append((path, x))
            continue
        inside = jax.tree_util.tree_leaves_with_path(x, is_leaf=lambda y, box=x: y is not box)
        for key, content in inside:
            own = path if len(inside) == 1 else path + key
            found += [(own + rest, y) for rest, y in _walk(content, is_leaf)]
    return found


def is_function(x: Any) -> bool:
    """Returns whether x is a function to call rather than a tree; modules of Equinox and Flax are callable trees.

    Functions are callables that JAX treats as leaves, partial functions, wrappers of a function such as those of
    `equinox.filter_jit`, the library's own values, and modules that hold only functions.

    >>> is_function(len), is_function(functools.partial(max, 1)), is_function({"w": True})
    (True, True, False)
    """
    if not callable(x):
        return False
    if isinstance(x, functools.partial) or hasattr(x, "__wrapped__") or is_value(x) or jax.tree_util.all_leaves([x]):
        return True
    return all(callable(leaf) for leaf in jax.tree.leaves(x))


def matching(params: Tree, slots: Tree) -> Tree:
    """Returns the params as `init` saw them: None where a slot is None."""
    treedef, rows = zip_leaves((slots, params), ("the optimizer state", "params"), same_shape=False)
    return treedef.unflatten([None if slot is None else p for slot, p in rows])


def differentiable(params: Tree, updates: Tree) -> tuple[list[Any], Callable[[list], Tree], Callable[[list], Tree]]:
    """Returns the leaves by which a loss can be differentiated, and two functions that put new values in their place.

    The first function returns the new values with the rest of the params, the second with None elsewhere. A leaf that
    has no update and is not a floating or complex array is a constant of the loss.
    """
    leaves, treedef = jax.tree.flatten(params)
    seen = treedef.flatten_up_to(visible(params, updates))
    here = [i for i, x in enumerate(seen) if x is not None and is_inexact(x)]

    def into(rest: list[Any], some: list[Any]) -> Tree:
        new = dict(zip(here, some, strict=True))
        return treedef.unflatten([new.get(i, x) for i, x in enumerate(rest)])

    alone = [None] * len(leaves)
    return [leaves[i] for i in here], functools.partial(into, leaves), functools.partial(into, alone)


def visible(params: Tree, updates: Tree) -> Tree:
    """Returns the params as masks and labels see them: None for a leaf that is not an array and has no update.

    A step may get an entire model, with activation functions among its leaves, although `init` got only the arrays.
    """
    if all(hasattr(x, "shape") for x in jax.tree.leaves(params)):
        return params

    def leaf(u: Any, p: Any) -> Any:
        return jax.tree.map(lambda x: x if hasattr(x, "shape") else None, p) if is_nothing(u) else p

    try:
        return jax.tree.map(leaf, updates, params, is_leaf=is_nothing)
    except (ValueError, TypeError):  # the trees do not correspond; a later check raises an error that says how
        return params
