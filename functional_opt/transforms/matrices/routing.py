"""The role of each leaf in a model, from its path and shape: what Muon and its kin update, and what goes to Adam.

The names are those of Flax, Equinox, Haiku and common hand-written models. A leaf with more than two axes is read as
a matrix only if its name or its neighbours tell which axes are rows and which are columns.
"""

import fnmatch
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ...core.leaves import Tree, is_nothing
from ...core.model_trees import names
from ...core.paths import matches

Layout = Literal["in_out", "out_in"]
"""How matrices are stored: (inputs, outputs) as in Flax and Haiku, (outputs, inputs) as in Equinox and PyTorch."""

HEADS = ("head/**", "*_head/**", "*[uU]nembed*/**", "*logits*/**", "classifier/**")
EMBEDDINGS = ("*[eE]mbed*/**", "emb/**", "*_emb/**", "wte/**", "wpe/**")
VECTORS = ("bias", "*_bias", "b[qkvo]", "b_[qkvo]", "scale", "*_scale", "beta", "gamma", "offset", "shift", "gain")
"""Last parts of the paths of biases and of norm layers' scales: never matrices, however many axes they have."""

_KERNELS = ("kernel", "w", "weight")
_NORMS = ("*[nN]orm", "*[nN]orm_[0-9]*", "*[nN]orm[0-9]*", "ln", "ln_*", "ln[0-9]*", "bn", "bn_*", "bn[0-9]*")
_INTO_HEADS = ("query", "key", "value", "[qkv]", "[qkv]_proj", "query_proj", "key_proj", "value_proj", "w[qkv]")
_INTO_HEADS += ("W[qkv]", "w_[qkv]", "to_[qkv]")
_OUT_OF_HEADS = ("out", "o", "o_proj", "out_proj", "output", "output_proj", "wo", "Wo", "w_o", "to_out", "proj")
_ORDER = (
    'read as (inputs, outputs), but Equinox and PyTorch store a "weight" as (outputs, inputs); set '
    'matrix_layout="out_in" or "in_out"'
)
_UNREADABLE = (
    "a stack of matrices, a convolution, or one matrix with several axes for its rows or columns? Treated as none "
    "of them. To say which axes are rows and columns, pass path rules as weight_dimension_numbers (for muon: "
    'muon_weight_dimension_numbers), such as {"PATH": MuonDimensionNumbers(1, 2), "**": "auto"}; use None for a leaf '
    "that is not a matrix"
)
_STACKS = ("Scan*", "Vmap*", "*layers", "*blocks", "*layer_stack", "*experts")


class LeafRole(NamedTuple):
    """`kind`: "vector", "head" (the output layer), "embedding", "matrix", or "other" if its axes are unclear.

    `why`: the reason. `rows`, `columns`: the axes of the inputs and of the outputs; all others belong to a stack.
    `doubt`: what is uncertain, or "".
    """

    kind: str
    why: str
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    doubt: str = ""


_known: dict[Any, tuple[LeafRole, ...]] = {}


def leaf_roles(params: Tree, layout: Layout | None = None) -> Sequence[LeafRole]:
    """Returns the role of every leaf; None counts as a leaf.

    >>> [place[:2] for place in leaf_roles({"bias": jnp.ones(2), "lm_head": jnp.ones((2, 9)), "q": jnp.ones((2, 2))})]
    [('vector', '1-d'), ('head', "path '*_head/**'"), ('matrix', '2-d')]
    """
    leaves, treedef = jax.tree.flatten(params, is_leaf=is_nothing)
    shapes = tuple(None if is_nothing(x) else jnp.shape(x) for x in leaves)
    key = treedef, shapes, layout
    try:
        if key in _known:
            return _known[key]
    except (TypeError, ValueError):  # a node whose metadata cannot be hashed or compared
        return _Model(names(params, is_nothing), shapes, layout).roles()
    if len(_known) >= 256:
        _known.clear()
    _known[key] = found = tuple(_Model(names(params, is_nothing), shapes, layout).roles())
    return found


class _Leaf(NamedTuple):
    path: str
    parts: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def module(self) -> tuple[str, ...]:
        """The path of the weight's module: `attention/query` for `attention/query/kernel` and `attention/query`."""
        return self.parts[:-1] if len(self.parts) > 1 and _is(self.parts[-1], _KERNELS + VECTORS) else self.parts

    def owned_by(self, patterns: Sequence[str]) -> bool:
        return bool(self.module) and _is(self.module[-1], patterns)


class _Model:
    """All leaves of a model, since one leaf alone does not tell whether its first axis counts layers."""

    def __init__(self, paths: Sequence[str], shapes: Sequence[Any], layout: Layout | None):
        self.leaves = [
            _Leaf(path, tuple(path.split("/")), () if shape is None else shape)
            for path, shape in zip(paths, shapes, strict=True)
        ]
        self.there = [shape is not None for shape in shapes]
        self.layout = layout
        self.by_path = {leaf.path: leaf for leaf in self.leaves}
        self.below: dict[tuple[str, ...], list[_Leaf]] = {}
        for leaf, there in zip(self.leaves, self.there, strict=True):
            for i in range(len(leaf.parts) if there else 0):
                self.below.setdefault(leaf.parts[:i], []).append(leaf)
        self.stacks = {prefix: _stack_axes(prefix, inside) for prefix, inside in self.below.items()}

    def roles(self) -> list[LeafRole]:
        both = zip(self.leaves, self.there, strict=True)
        return [self._place(leaf) if there else LeafRole("vector", "0-d") for leaf, there in both]

    def _place(self, leaf: _Leaf) -> LeafRole:
        axes = len(leaf.shape)
        if axes < 2:
            return LeafRole("vector", f"{axes}-d")
        if self._is_vector(leaf):
            return LeafRole("vector", f"path {leaf.path!r}, {axes}-d")
        k = max((self.stacks[leaf.parts[:i]] for i in range(len(leaf.parts))), default=0)
        last_two = self._turned((axes - 2,), (axes - 1,))
        for pattern in HEADS:
            if matches(pattern, leaf.path):
                return LeafRole("head", f"path {pattern!r}", *last_two)
        for pattern in EMBEDDINGS:
            if matches(pattern, leaf.path):
                return LeafRole("embedding", f"path {pattern!r}", (axes - 2,), (axes - 1,))
        if axes - k < 2 or sum(n != 1 for n in leaf.shape) < 2 < axes:
            return LeafRole("vector", f"{axes}-d, a stack" if k else f"{axes}-d")
        if axes - k == 2:
            unsure = self.layout is None and leaf.parts[-1] == "weight"
            why = self._in_words(k, "", last_two) if k else "2-d"
            return LeafRole("matrix", why, *last_two, _ORDER if unsure else "")
        return self._of_more_axes(leaf, k)

    def _of_more_axes(self, leaf: _Leaf, k: int) -> LeafRole:
        """Returns the role of a leaf with more than two axes besides the k of a stack."""
        axes, bias = len(leaf.shape), self._bias(leaf)
        every = tuple(range(k, axes))

        def matrix(why: str, inputs: tuple[int, ...], outputs: tuple[int, ...], k: int = k) -> LeafRole:
            both = self._turned(inputs, outputs)
            return LeafRole("matrix", self._in_words(k, why, both), *both)

        if axes - k == 3 and leaf.owned_by(_INTO_HEADS):
            if k == 0 and bias == (leaf.shape[0], leaf.shape[-1]) != leaf.shape[1:]:
                return matrix("", (1,), (2,), 1)
            return matrix("attention, ", every[:1], every[1:])
        if axes - k == 3 and leaf.owned_by(_OUT_OF_HEADS) and self._has_heads(leaf):
            return matrix("attention, ", every[:2], every[2:])
        if _is_convolution(leaf):
            return LeafRole("other", f"{axes}-d, a convolution")
        outputs = 0 if bias is None else len(bias) - k
        fits = 1 < outputs < axes - k and bias == leaf.shape[:k] + leaf.shape[axes - outputs :]
        if fits and (k or leaf.shape[0] != leaf.shape[-2]) and self.layout != "out_in":
            return matrix("outputs as its bias, ", every[:-outputs], every[-outputs:])
        return LeafRole("other", f"{axes}-d", (), (), _UNREADABLE)

    def _in_words(self, k: int, why: str, both: tuple[tuple[int, ...], tuple[int, ...]]) -> str:
        rows, columns = (", ".join(map(str, axes)) for axes in both)
        return f"{f'stack over {k} of its axes, ' if k else ''}{why}rows {rows}, columns {columns}"

    def _turned(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the axes of rows and columns, given those of inputs and outputs for inputs stored first."""
        if self.layout != "out_in":
            return inputs, outputs
        first = min(inputs + outputs)
        between = first + len(outputs)
        return tuple(range(between, between + len(inputs))), tuple(range(first, between))

    def _is_vector(self, leaf: _Leaf) -> bool:
        *above, name = leaf.parts
        if name == "b":  # in LoRA's pair a, b it is a matrix
            return "/".join([*above, "a"]) not in self.by_path
        of_norm = bool(above) and _is(above[-1], _NORMS) and name in ("weight", "w", "g")
        return _is(name, VECTORS) or of_norm

    def _bias(self, leaf: _Leaf) -> tuple[int, ...] | None:
        """Returns the shape of the bias next to a kernel, or None."""
        for name in ("bias", "b"):
            beside = self.by_path.get("/".join([*leaf.parts[:-1], name]))
            if beside is not None and beside is not leaf and beside.shape:
                return beside.shape
        return None

    def _has_heads(self, leaf: _Leaf) -> bool:
        """Returns whether a module is part of an attention, by the names of modules around it or by its siblings."""
        around = leaf.module[:-1]
        named = any("attention" in part.lower() or "attn" in part.lower() for part in around)
        return named or any(x.owned_by(_INTO_HEADS) and x.module[:-1] == around for x in self.below.get(around, ()))


def _is(part: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(part, pattern) for pattern in patterns)


def _is_convolution(leaf: _Leaf) -> bool:
    return any("conv" in part.lower() for part in leaf.parts)


def _stack_axes(prefix: tuple[str, ...], inside: list[_Leaf]) -> int:
    """Returns how many leading axes of the leaves below a path count layers, as in a model that scans over layers.

    The vectors tell by the axes before their own; without vectors the name tells. All leaves must share these leading
    axes, and every kernel must have two more. The bias of a projection to heads has two axes of its own, so it is
    ignored.
    """
    vectors = [x for x in inside if _is(x.parts[-1], VECTORS) or x.parts[-1] == "b"]
    sure = [len(x.shape) - 1 for x in vectors if not x.owned_by(_INTO_HEADS)]
    counted = any(x.parts[len(prefix)].isdigit() for x in inside)
    named = bool(prefix) and _is(prefix[-1], _STACKS) and not counted
    k = min(sure) if sure else int(named)
    kernels = [x for x in inside if x.parts[-1] in _KERNELS]
    alike = len({x.shape[:k] for x in inside}) == 1 and all(len(x.shape) >= k for x in inside)
    return k if k > 0 and alike and kernels and all(len(x.shape) >= k + 2 for x in kernels) else 0
