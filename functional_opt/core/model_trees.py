"""Trees of model libraries: boxes that are no part of a path, modules that are callable and yet trees.

Nothing here imports such a library: a box and a module are known by what they look like.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from .leaves import Tree, is_inexact, is_nothing
from .value import is_value


def is_box(x: Any) -> bool:
    """Whether x keeps an array with metadata: a variable of nnx, `nn.Partitioned` and its kin."""
    return hasattr(type(x), "replace_boxed") or hasattr(type(x), "get_metadata")


def children_of(node: Any) -> list[Any]:
    """Returns the children of a pytree node, of any kind; none of a leaf.

    >>> children_of({"a": (1, 2), "b": None}), below(3)
    ([(1, 2), None], [])
    """
    inside = jax.tree.leaves(node, is_leaf=lambda x: x is not node)
    return [] if len(inside) == 1 and inside[0] is node else inside


def unboxed(tree: Tree) -> Tree:
    """Returns the tree with the contents of all its boxes in their place; the same object if there are none."""
    if not any(map(is_box, jax.tree.leaves(tree, is_leaf=is_box))):
        return tree

    def content(x: Any) -> Any:
        return unboxed(inside[0]) if is_box(x) and len(inside := children_of(x)) == 1 else x

    return jax.tree.map(content, tree, is_leaf=is_box)


def boxed_like(tree: Tree, like: Tree) -> Tree:
    """Returns a tree of the structure of `unboxed(like)` in boxes as `like` has them; any other as it is."""
    bare = unboxed(like)
    if bare is like or jax.tree.structure(bare) != jax.tree.structure(tree):
        return tree
    return jax.tree.structure(like).unflatten(jax.tree.leaves(tree))


def names(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """The path of every leaf as its owner writes it, `encoder/layer_0/bias`, without the boxes that leaves are in.

    >>> names({"layers": [{"w": 1.0}, {"w": 2.0}], "value": 3.0})
    ['layers/0/w', 'layers/1/w', 'value']
    """
    return [name for name, _ in named_leaves(tree, is_leaf)]


def named_leaves(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """Every leaf with its path, in the order of `jax.tree.leaves`. See `names`."""
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
            found += [(own + children_of, y) for children_of, y in _walk(content, is_leaf)]
    return found


def is_function(x: Any) -> bool:
    """Whether x is a function that is to be called, and no tree: modules of Equinox and Flax are callable, too.

    Callables that JAX takes for a leaf are functions, and so are partial functions, wrappers of a function such as
    those of `equinox.filter_jit`, the library's own values, and modules that hold nothing but functions.

    >>> is_function(len), is_function(functools.partial(max, 1)), is_function({"w": True})
    (True, True, False)
    """
    if not callable(x):
        return False
    if isinstance(x, functools.partial) or hasattr(x, "__wrapped__") or is_value(x) or jax.tree_util.all_leaves([x]):
        return True
    return all(callable(leaf) for leaf in jax.tree.leaves(x))


def matching(params: Tree, slots: Tree) -> Tree:
    """The params as `init` saw them: None where a slot is None."""
    return jax.tree.map(lambda slot, p: None if slot is None else p, slots, params, is_leaf=is_nothing)


def differentiable(params: Tree, updates: Tree) -> tuple[list[Any], Callable[[list], Tree], Callable[[list], Tree]]:
    """The leaves that a loss can be differentiated by, and two functions that take others in their place.

    The first puts them among the rest of the params, the second among None. A leaf that has no update and is no
    floating or complex array is a constant of the loss.
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
    """The params as masks, labels and the like see them: None for what is no array where the update is None.

    A step may be given a whole model, activation functions among its leaves, where `init` was given its arrays.
    """
    if all(hasattr(x, "shape") for x in jax.tree.leaves(params)):
        return params

    def leaf(u: Any, p: Any) -> Any:
        return jax.tree.map(lambda x: x if hasattr(x, "shape") else None, p) if is_nothing(u) else p

    try:
        return jax.tree.map(leaf, updates, params, is_leaf=is_nothing)
    except (ValueError, TypeError):  # trees that do not correspond, which others refuse in words
        return params
