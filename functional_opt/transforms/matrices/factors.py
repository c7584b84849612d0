"""Pairs of leaves that are the factors of a matrix of low rank, as in LoRA, found by their paths."""

import math
import re
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from ...core.leaves import Tree, is_nothing, paths
from ...core.model_trees import names
from ...core.ranges import Convert
from ...core.sharding import replicate, reshard_like
from .routing import Layout


def _to_pairs(name: str, x: Any) -> tuple[tuple[str, str], ...]:
    pairs = tuple(x.items()) if isinstance(x, dict) else tuple(x) if isinstance(x, tuple | list) else ()

    def is_pair(pair: Any) -> bool:
        two = isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(side, str) for side in pair)
        return two and "" not in pair and pair[0] != pair[1] and pair[0].count("*") == pair[1].count("*")

    if not pairs or not all(map(is_pair, pairs)):
        raise ValueError(
            f'{name} must be a dict such as {{"*lora_a": "*lora_b"}}, from a pattern of paths of A to the same '
            f"pattern for B, with as many *, got {x!r}"
        )
    return tuple(map(tuple, pairs))


Pairs = Annotated[Any, Convert(_to_pairs, "{pattern of A: pattern of B}")]
"""Which leaves are pairs: a dict from the pattern of A to that of B."""

USUAL = (("*lora_a", "*lora_b"), ("*lora_A", "*lora_B"))


class Factors:
    """The leaves of a tree as matrices with r columns, A and Bᴴ, and the partner of each leaf."""

    def __init__(self, pairs: tuple[tuple[str, str], ...], layout: Layout | None, params: Tree):
        leaves, self.treedef = jax.tree.flatten(params, is_leaf=is_nothing)
        where = {name: i for i, name in enumerate(names(params, is_nothing))}
        self.partner: list[int | None] = [None] * len(leaves)
        self.views: list[_View | None] = [None] * len(leaves)

        def path(i: int) -> str:
            return paths(params, is_nothing)[i]

        for name, i in where.items():
            if is_nothing(leaves[i]):
                continue
            other, is_a = _partner_of(name, pairs)
            if other is None:
                raise ValueError(
                    f"params{path(i)} is in no pair: no pattern of pairs={dict(pairs)} matches {name!r}; freeze it, "
                    'as in groups(lora_rite(1e-3), {"*lora_*": {}, "**": "frozen"}), or give it another optimizer '
                    "with partition"
                )
            j = where.get(other)
            if j is None or is_nothing(leaves[j]):
                raise ValueError(
                    f"params{path(i)} needs its partner at {other!r}, but params has no array there: the rule for "
                    "one factor reads the other, so both must be in the tree"
                )
            a, b = (jnp.shape(leaves[k]) for k in ((i, j) if is_a else (j, i)))
            found = _axes_of_pair(a, b, layout)
            if found is None:
                raise ValueError(
                    f"params{path(i if is_a else j)} has shape {a} and params{path(j if is_a else i)} has {b}: they "
                    f"need a common rank, as (64, 4) and (4, 32) or (4, 64) and (32, 4) have"
                    f"{'' if layout is None else f', with matrix_layout={layout!r}'}"
                )
            stack, in_out = found
            self.partner[i] = j
            self.views[i] = _View(jnp.shape(leaves[i]), stack, is_a != in_out, lambda i=i: path(i))

    def partners(self, tree: Tree) -> Tree:
        """Returns a tree with the partner of each leaf in its place."""
        leaves = self.treedef.flatten_up_to(tree)
        return self.treedef.unflatten([None if j is None else leaves[j] for j in self.partner])

    def matrices(self, tree: Tree, of_partners: bool = False) -> Tree:
        return self._each(lambda view, x: view.matrix(x), tree, of_partners)

    def back(self, tree: Tree, like: Tree, of_partners: bool = False) -> Tree:
        """Returns a tree of matrices in the shapes of the leaves, sharded as `like` if that is part of its type."""
        return self._each(lambda view, x, old: view.back(x, old), tree, of_partners, like)

    def _each(self, fn: Callable, tree: Tree, of_partners: bool, *others: Tree) -> Tree:
        views = [None if j is None else self.views[j] for j in self.partner] if of_partners else self.views
        try:
            rows = zip(*map(self.treedef.flatten_up_to, (tree, *others)), strict=True)
        except (ValueError, TypeError):
            return tree  # of another structure, for `map_leaves` to refuse
        pairs = zip(views, rows, strict=True)
        return self.treedef.unflatten([x if v is None or is_nothing(x) else fn(v, x, *y) for v, (x, *y) in pairs])


def _partner_of(name: str, pairs: tuple[tuple[str, str], ...]) -> tuple[str | None, bool]:
    """Returns the path of the partner of a leaf, None if it is in no pair, and whether the leaf is A."""
    for pair in pairs:
        for own, other in (pair, pair[::-1]):
            texts = "([^/]*)".join(map(re.escape, own.split("*")))
            found = [*re.finditer(f"(?<![^/]){texts}(?![^/])", name)]
            if found:
                start, end = found[-1].span()
                texts = [x for both in zip(other.split("*"), (*found[-1].groups(), ""), strict=True) for x in both]
                return name[:start] + "".join(texts) + name[end:], own is pair[0]
    return None, False


def _axes_of_pair(a: tuple[int, ...], b: tuple[int, ...], layout: Layout | None) -> tuple[int, bool] | None:
    """Returns how many leading axes are a stack, and whether the layout is "in_out"; None if no layout fits."""
    fits = []
    for in_out in (True, False):
        for stack in range(min(len(a), len(b)) - 1):
            ranks = (a[-1], b[stack]) if in_out else (a[stack], b[-1])
            if a[:stack] == b[:stack] and ranks[0] == ranks[1] and layout in (None, "in_out" if in_out else "out_in"):
                fits.append((ranks[0], -stack, not in_out))
    _, stack, out_in = min(fits, default=(0, 1, False))
    return None if stack > 0 else (-stack, not out_in)


class _View:
    """A factor as a matrix, or a stack of them, with r columns: B, whose rank comes first, is Bᴴ."""

    def __init__(self, shape: tuple[int, ...], stack: int, rank_first: bool, path: Callable[[], str]):
        self.shape, self.stack, self.rank_first, self.path = shape, stack, rank_first, path

    def matrix(self, x: Any) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.eval_shape(self.matrix, x)
        if jnp.shape(x) != self.shape:
            raise ValueError(
                f"params{self.path()} has shape {self.shape}, but updates or the optimizer state have shape "
                f"{jnp.shape(x)} there; if that state was made for other params, start from tx.init(params)"
            )
        x = replicate(jnp.asarray(x))  # a decomposition needs the full matrix
        x = jnp.moveaxis(x, self.stack, -1).conj() if self.rank_first else x
        return x.reshape(*x.shape[: self.stack], math.prod(x.shape[self.stack : -1]), x.shape[-1])

    def back(self, x: jax.Array, like: Any) -> jax.Array:
        if self.rank_first:
            x = x.reshape(*x.shape[:-2], *self.shape[self.stack + 1 :], x.shape[-1])
            x = jnp.moveaxis(x, -1, self.stack).conj()
        return reshard_like(x.reshape(self.shape), like)
