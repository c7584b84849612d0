"""Dimension numbers: which axes of a leaf are the rows and columns of a matrix, for GaLore and Muon."""

import itertools
import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.leaves import Tree, is_nothing, paths
from ...core.model_trees import is_function
from ...core.paths import Frozen, MaskedNode, PathRules, are_rules, resolve_values
from ...core.ranges import Convert
from ...core.sharding import reshard_like
from ...placement.like import keep_placement, unless_split
from .routing import LeafRole, leaf_roles


class MuonDimensionNumbers(NamedTuple):
    """The axes of a leaf that are the rows and those that are the columns of a matrix: each an axis or several.

    All other axes are those of a stack of matrices. A leaf that holds several matrices side by side is cut into
    blocks, and each block is treated as a matrix of its own: `reduction_blocks` cuts the rows, `output_blocks` the
    columns, into so many blocks of one size, or into blocks of the sizes in a tuple.

    For a kernel of shape (inputs, outputs), `MuonDimensionNumbers(0, 1, output_blocks=12)` has a block for each of 12
    heads, `MuonDimensionNumbers(0, 1, output_blocks=(768, 256, 256))` one for each of Q, K and V; the projection out
    of the heads is cut by `reduction_blocks=12`.
    """

    reduction_axis: Any = 0
    output_axis: Any = 1
    reduction_blocks: Any = None
    output_blocks: Any = None

    def __repr__(self) -> str:
        shown = [f"{name}={x!r}" for name, x in zip(self._fields, self, strict=True) if x is not None]
        return f"MuonDimensionNumbers({', '.join(shown)})"

    def in_words(self) -> str:
        """Returns a description of the blocks, or an empty string."""
        cuts = (("rows", self.reduction_blocks), ("columns", self.output_blocks))
        return ", ".join(
            f"{name} in {cut} blocks" if isinstance(cut, int) else f"{name} in blocks of {', '.join(map(str, cut))}"
            for name, cut in cuts
            if cut is not None
        )


class GaLoreDimensionNumbers(NamedTuple):
    """The axes of a leaf that are the rows and those that are the columns of a matrix: each an axis or several."""

    reduction_axis: Any = 0
    output_axis: Any = 1


AUTO = "auto"
"""In place of dimension numbers: infer them from the path and the shape of a leaf."""


_UNSAID = object()


def _is_spec(x: Any) -> bool:
    fields = (GaLoreDimensionNumbers._fields, MuonDimensionNumbers._fields)  # Optax's have the former
    return x is None or x == AUTO or getattr(x, "_fields", None) in fields


def _frozen(kind: Any) -> Callable[[str, Any], Any]:
    """Returns a converter that makes dimension numbers hashable, in a tree or in path rules."""

    def leaf(name: str, spec: Any) -> Any:
        if not _is_spec(spec) or (spec == AUTO and kind is GaLoreDimensionNumbers):
            raise TypeError(f"{name} must hold {kind.__name__} or None, got {spec!r}")
        if not isinstance(spec, tuple):
            return spec
        if len(spec) > len(kind._fields):
            raise TypeError(f"{name} must hold {kind.__name__} or None, got {spec!r}")
        own = GaLoreDimensionNumbers if isinstance(spec, GaLoreDimensionNumbers) else kind
        return own(*map(axes_of, spec[:2]), *(_blocks(name, cut) for cut in spec[2:]))

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


def _blocks(name: str, cut: Any) -> Any:
    """Returns a count of blocks, a tuple of their sizes, or None for one block."""
    sizes = cut if isinstance(cut, tuple | list) else (cut,)
    if cut is None or (sizes and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes)):
        return tuple(cut) if isinstance(cut, tuple | list) else cut
    raise ValueError(f"{name}: blocks must be a count ≥ 1, a tuple of sizes ≥ 1 or None, got {cut!r}")


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

    A leaf cut into blocks of one size becomes one stack, whose axes before the last two count the blocks. A leaf cut
    into blocks of several sizes becomes a tuple of stacks.

    `numbers`: dimension numbers as in a field, or a list with those of each leaf.
    """

    def __init__(self, numbers: Any, tree: Tree):
        leaves, self.treedef = jax.tree.flatten(tree, is_leaf=is_nothing)
        specs = [None] * len(leaves) if numbers is None else numbers
        specs = specs if isinstance(specs, list) else specs_of(numbers, tree)
        both = enumerate(zip(specs, leaves, strict=True))
        path = lambda i: paths(tree, is_nothing)[i]  # noqa: E731
        self.views = [None if s is None or is_nothing(x) else _Stack(s, x, path, i) for i, (s, x) in both]

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

    def __init__(self, spec: Any, like: Any, path: Callable[[int], str], i: int):
        self.like, shape = like, jnp.shape(like)
        rows, columns = ([axis % max(len(shape), 1) for axis in axes_of(axes)] for axes in spec[:2])
        inside = all(-len(shape) <= axis < len(shape) for axes in spec[:2] for axis in axes_of(axes))
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
        cuts = zip((-2, -1), spec[2:], strict=False)  # Optax's numbers have none
        self.cuts = [_Cut(self.stacked, axis, blocks, path(i)) for axis, blocks in cuts if blocks is not None]
        self.path = path(i) if self.cuts else ""

    def stack(self, x: Any) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.eval_shape(self.stack, x)
        x = jnp.asarray(x)
        if x.shape != self.shape:
            if self.cuts:
                raise ValueError(
                    f"weight_dimension_numbers{self.path} cuts a leaf of shape {self.shape} into blocks, but updates,"
                    f" params or the optimizer state have shape {x.shape} there"
                )
            return x
        x = x.transpose(self.order).reshape(self.stacked)
        for cut in self.cuts:
            x = jax.tree.map(cut.split, x)
        return x

    def back(self, x: Any) -> Any:
        for cut in reversed(self.cuts):
            x = cut.join(x)
        if list(x.shape) != self.stacked:
            return x
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        x = x.reshape(self.turned).transpose(inverse)
        return keep_placement(reshard_like(x, self.like), self.like) if self.cuts else x


class _Cut:
    """Cuts an axis of stacks of matrices, -2 or -1, into blocks, and joins the blocks."""

    def __init__(self, shape: list[int], axis: int, blocks: Any, path: str):
        n = shape[axis]
        self.axis, self.sizes = axis, (n // blocks,) * blocks if isinstance(blocks, int) else blocks
        self.even = len({*self.sizes}) == 1
        if sum(self.sizes) != n:
            raise ValueError(
                f"weight_dimension_numbers{path} cuts {n} {'rows' if axis == -2 else 'columns'} into blocks, got "
                f"{blocks}; the sizes must add up to {n}, and a count must divide it"
            )

    def split(self, x: jax.Array) -> Any:
        axis, n = x.ndim + self.axis, len(self.sizes)
        x = unless_split(x, axis, n if self.even else 1)
        if not self.even:
            return tuple(jnp.split(x, list(itertools.accumulate(self.sizes[:-1])), axis))
        return jnp.moveaxis(x.reshape(*x.shape[:axis], n, self.sizes[0], *x.shape[axis + 1 :]), axis, -3)

    def join(self, x: Any) -> Any:
        if isinstance(x, tuple):
            of_the_other_axis = self.even or isinstance(x[0], tuple)
            return tuple(map(self.join, x)) if of_the_other_axis else jnp.concatenate(x, self.axis)
        axis = x.ndim - 1 + self.axis
        x = jnp.moveaxis(x, -3, axis)
        return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])
