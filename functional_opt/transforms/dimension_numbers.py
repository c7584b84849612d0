"""Which axes of a leaf are the rows of a matrix, and which its columns, for GaLore and Muon."""

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from ..leaves import Tree, is_nothing, paths
from ..paths import Frozen
from ..value import Convert


class MuonDimensionNumbers(NamedTuple):
    """Which axes of a leaf are the rows of a matrix, and which its columns: each an axis or several.

    All others are axes of a stack of matrices.
    """

    reduction_axis: Any = 0
    output_axis: Any = 1


class GaLoreDimensionNumbers(NamedTuple):
    """Which axes of a leaf are the rows of a matrix, and which its columns: each an axis or several."""

    reduction_axis: Any = 0
    output_axis: Any = 1


def _is_spec(x: Any) -> bool:
    return x is None or getattr(x, "_fields", None) == GaLoreDimensionNumbers._fields


def _frozen(kind: Any) -> Callable[[str, Any], Any]:
    """What makes a tree of dimension numbers hashable."""

    def convert(name: str, x: Any) -> Any:
        if x is None or callable(x) or isinstance(x, Frozen):
            return x
        leaves, treedef = jax.tree.flatten(x, is_leaf=_is_spec)
        for spec in leaves:
            if not _is_spec(spec):
                raise TypeError(f"{name} must hold {kind.__name__} or None, got {spec!r}")
        return Frozen(tuple(spec and kind(*map(axes_of, spec)) for spec in leaves), treedef)

    return convert


def axes_of(axis: Any) -> tuple[int, ...]:
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if not all(isinstance(a, int) and not isinstance(a, bool) for a in axes):
        raise TypeError(f"an axis must be a whole number, got {axes!r}")
    return axes


MuonNumbers = Annotated[Any, Convert(_frozen(MuonDimensionNumbers), "tree of MuonDimensionNumbers")]
GaLoreNumbers = Annotated[Any, Convert(_frozen(GaLoreDimensionNumbers), "tree of GaLoreDimensionNumbers")]
"""Dimension numbers for all leaves, a tree of them (or a prefix of one), or a function from params to one."""


def specs_of(numbers: Any, tree: Tree) -> list[Any]:
    """The dimension numbers of every leaf, or None: where they say so, and for vectors if one is for all leaves."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_nothing)
    if isinstance(numbers, Callable):
        numbers = _frozen(GaLoreDimensionNumbers)("weight_dimension_numbers", numbers(tree))
    if numbers is None or _is_spec(numbers.thaw()):
        spec = None if numbers is None else numbers.thaw()
        return [spec if not is_nothing(x) and jnp.ndim(x) > 1 else None for x in leaves]
    parts = zip(numbers.leaves, numbers.treedef.flatten_up_to(tree), strict=True)
    return [spec for spec, part in parts for _ in jax.tree.leaves(part, is_leaf=is_nothing)]


class Stacks:
    """A tree whose leaves are turned into stacks of matrices, the last two axes rows and columns, and back."""

    def __init__(self, numbers: Any, tree: Tree):
        leaves, self.treedef = jax.tree.flatten(tree, is_leaf=is_nothing)
        specs = [None] * len(leaves) if numbers is None else specs_of(numbers, tree)
        both = enumerate(zip(specs, leaves, strict=True))
        path = lambda i: paths(tree, is_nothing)[i]  # noqa: E731
        self.views = [None if s is None or is_nothing(x) else _Stack(s, jnp.shape(x), path, i) for i, (s, x) in both]

    def stack(self, tree: Tree) -> Tree:
        return self._each(lambda view, x: view.stack(x), tree)

    def back(self, tree: Tree) -> Tree:
        return self._each(lambda view, x: view.back(x), tree)

    def _each(self, fn: Callable, tree: Tree) -> Tree:
        """On the leaves that have numbers; a tree of another structure is left for `map_leaves` to refuse."""
        try:
            parts = self.treedef.flatten_up_to(tree)
        except (ValueError, TypeError):
            return tree
        pairs = zip(self.views, parts, strict=True)
        return self.treedef.unflatten([x if v is None or is_nothing(x) else fn(v, x) for v, x in pairs])


class _Stack:
    """A leaf as a stack of matrices."""

    def __init__(self, spec: Any, shape: tuple[int, ...], path: Callable[[int], str], i: int):
        rows, columns = ([axis % max(len(shape), 1) for axis in axes_of(axes)] for axes in spec)
        inside = all(-len(shape) <= axis < len(shape) for axes in spec for axis in axes_of(axes))
        if not (inside and rows and columns and len({*rows, *columns}) == len(rows + columns)):
            raise ValueError(
                f"weight_dimension_numbers{path(i)} must name rows and columns among the axes of a leaf of shape "
                f"{shape}, none of them twice, got {spec}"
            )
        batch = [axis for axis in range(len(shape)) if axis not in rows + columns]
        self.shape, self.order = shape, batch + rows + columns
        self.turned = [shape[axis] for axis in self.order]
        ends = ([shape[axis] for axis in axes] for axes in (rows, columns))
        self.stacked = [*(shape[axis] for axis in batch), *map(math.prod, ends)]

    def stack(self, x: Any) -> Any:
        x = jnp.asarray(x)
        return x.transpose(self.order).reshape(self.stacked) if x.shape == self.shape else x

    def back(self, x: Any) -> Any:
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return x.reshape(self.turned).transpose(inverse) if list(x.shape) == self.stacked else x
