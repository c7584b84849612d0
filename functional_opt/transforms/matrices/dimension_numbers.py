"""Dimension numbers: which axes of a leaf are the rows and columns of a matrix, for GaLore and Muon."""

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.leaves import Tree, is_nothing, paths
from ...core.model_trees import is_function
from ...core.paths import Frozen, MaskedNode, PathRules, are_rules, resolve_values
from ...core.ranges import Convert
from .routing import LeafRole, leaf_roles


class MuonDimensionNumbers(NamedTuple):
    """The axes of a leaf that are the rows and those that are the columns of a matrix: each an axis or several.

    All other axes are those of a stack of matrices.
    """

    reduction_axis: Any = 0
    output_axis: Any = 1


class GaLoreDimensionNumbers(NamedTuple):
    """The axes of a leaf that are the rows and those that are the columns of a matrix: each an axis or several."""

    reduction_axis: Any = 0
    output_axis: Any = 1


AUTO = "auto"
"""In place of dimension numbers: infer them from the path and the shape of a leaf."""


_UNSAID = object()


def _is_spec(x: Any) -> bool:
    return x is None or x == AUTO or getattr(x, "_fields", None) == GaLoreDimensionNumbers._fields


def _frozen(kind: Any) -> Callable[[str, Any], Any]:
    """Returns a converter that makes dimension numbers hashable, in a tree or in path rules."""

    def leaf(name: str, spec: Any) -> Any:
        if not _is_spec(spec) or (spec == AUTO and kind is GaLoreDimensionNumbers):
            raise TypeError(f"{name} must hold {kind.__name__} or None, got {spec!r}")
        return kind(*map(axes_of, spec)) if isinstance(spec, tuple) else spec

    def convert(name: str, x: Any) -> Any:
        if x is None or isinstance(x, Frozen) or is_function(x):
            return x
        if isinstance(x, PathRules) or are_rules(x):
            rules = x.rules if isinstance(x, PathRules) else x.items()
            return PathRules({pattern: leaf(f"{name}[{pattern!r}]", spec) for pattern, spec in rules})
        leaves, treedef = jax.tree.flatten(x, is_leaf=_is_spec)
        return Frozen(tuple(leaf(name, spec) for spec in leaves), treedef)

    return convert


def axes_of(axis: Any) -> tuple[int, ...]:
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if not all(isinstance(a, int) and not isinstance(a, bool) for a in axes):
        raise TypeError(f"an axis must be a whole number, got {axes!r}")
    return axes


MuonNumbers = Annotated[Any, Convert(_frozen(MuonDimensionNumbers), "tree of MuonDimensionNumbers")]
GaLoreNumbers = Annotated[Any, Convert(_frozen(GaLoreDimensionNumbers), "tree of GaLoreDimensionNumbers")]
"""Dimension numbers for all leaves, a tree of them (or a prefix of one), a function that returns one, or path rules.

A leaf without a rule gets None, such as the biases with `{"*/kernel": MuonDimensionNumbers()}`.
"""


def specs_of(numbers: Any, tree: Tree) -> list[Any]:
    """Returns the dimension numbers of every leaf, or None. Infers those that are "auto" from path and shape."""
    specs = given_specs(numbers, tree)
    if AUTO not in specs:
        return specs
    read = map(numbers_at, leaf_roles(tree))
    return [auto if spec == AUTO else spec for spec, auto in zip(specs, read, strict=True)]


def given_specs(numbers: Any, tree: Tree) -> list[Any]:
    """Returns what a field says of each leaf: numbers, None or "auto". Numbers for all leaves skip vectors."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_nothing)
    if is_function(numbers):
        numbers = numbers(tree)
        if is_function(numbers):
            raise TypeError(f"weight_dimension_numbers must return a tree or path rules, got {numbers!r}")
        numbers = _frozen(MuonDimensionNumbers)("weight_dimension_numbers", numbers)
    if isinstance(numbers, PathRules):
        said = numbers.of_each(tree, default=_UNSAID)
        return [None if spec is _UNSAID else spec for spec in said if not isinstance(spec, MaskedNode)]
    if numbers is None or _is_spec(numbers.thaw()):
        spec = None if numbers is None else numbers.thaw()
        return [None if place.kind == "vector" else spec for place in leaf_roles(tree)]
    resolve_values("weight_dimension_numbers", numbers, tree)  # raises a clear error for a tree of another structure
    parts = zip(numbers.leaves, numbers.treedef.flatten_up_to(tree), strict=True)
    return [spec for spec, part in parts for _ in jax.tree.leaves(part, is_leaf=is_nothing)]


def numbers_at(place: LeafRole, kinds: tuple[str, ...] = ("matrix",)) -> MuonDimensionNumbers | None:
    """Returns the dimension numbers of a leaf of one of these kinds, else None."""
    return MuonDimensionNumbers(place.rows, place.columns) if place.kind in kinds else None


class Stacks:
    """Reshapes the leaves of a tree to stacks of matrices, whose last two axes are rows and columns, and back.

    `numbers`: dimension numbers as in a field, or a list with those of each leaf.
    """

    def __init__(self, numbers: Any, tree: Tree):
        leaves, self.treedef = jax.tree.flatten(tree, is_leaf=is_nothing)
        specs = [None] * len(leaves) if numbers is None else numbers
        specs = specs if isinstance(specs, list) else specs_of(numbers, tree)
        both = enumerate(zip(specs, leaves, strict=True))
        path = lambda i: paths(tree, is_nothing)[i]  # noqa: E731
        self.views = [None if s is None or is_nothing(x) else _Stack(s, jnp.shape(x), path, i) for i, (s, x) in both]

    def stack(self, tree: Tree) -> Tree:
        return self._each(lambda view, x: view.stack(x), tree)

    def back(self, tree: Tree) -> Tree:
        return self._each(lambda view, x: view.back(x), tree)

    def _each(self, fn: Callable, tree: Tree) -> Tree:
        """Applies `fn` to leaves with numbers; leaves a tree of another structure for `map_leaves` to reject."""
        try:
            parts = self.treedef.flatten_up_to(tree)
        except (ValueError, TypeError):
            return tree
        pairs = zip(self.views, parts, strict=True)
        return self.treedef.unflatten([x if v is None or is_nothing(x) else fn(v, x) for v, x in pairs])


class _Stack:
    """Reshapes one leaf to a stack of matrices and back."""

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
