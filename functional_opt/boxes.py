"""Boxes: what model libraries keep arrays in, with metadata, such as the variables of nnx and `nn.Partitioned`.

A box is a pytree node with one child. Nothing here imports such a library: a box is known by what it looks like.
"""

from typing import Any

import jax

from .leaves import Tree


def is_box(x: Any) -> bool:
    """Whether x keeps an array with metadata: a variable of nnx, `nn.Partitioned` and its kin."""
    return hasattr(type(x), "replace_boxed") or hasattr(type(x), "get_metadata")


def below(node: Any) -> list[Any]:
    """Returns the children of a pytree node, of any kind; none of a leaf.

    >>> below({"a": (1, 2), "b": None}), below(3)
    ([(1, 2), None], [])
    """
    inside = jax.tree.leaves(node, is_leaf=lambda x: x is not node)
    return [] if len(inside) == 1 and inside[0] is node else inside


def unboxed(tree: Tree) -> Tree:
    """Returns the tree with the contents of all its boxes in their place; the same object if there are none."""
    if not any(map(is_box, jax.tree.leaves(tree, is_leaf=is_box))):
        return tree

    def content(x: Any) -> Any:
        return unboxed(inside[0]) if is_box(x) and len(inside := below(x)) == 1 else x

    return jax.tree.map(content, tree, is_leaf=is_box)


def boxed_like(tree: Tree, like: Tree) -> Tree:
    """Returns a tree of the structure of `unboxed(like)` in boxes as `like` has them; any other as it is."""
    bare = unboxed(like)
    if bare is like or jax.tree.structure(bare) != jax.tree.structure(tree):
        return tree
    return jax.tree.structure(like).unflatten(jax.tree.leaves(tree))
