"""Rules that select the leaves of a pytree by path, for masks and labels.

A path is written `encoder/layer_0/bias`, without the boxes that hold the leaves: a `bias` in an `nnx.Variable` or an
`nn.Partitioned` has the same path as a bare one. A pattern matches the end of a path. A name or `*` matches one part,
and `**` matches any number of parts; a leading `/` anchors the pattern at the root:

==================  =========================================================
`bias`              every leaf named bias
`*/bias`            the same, except for a bias at the root itself
`encoder/**`        everything below an `encoder`, at any depth
`/head/kernel`      that one leaf
`norm_[0-9]/*`      inside a part, the wildcards of `fnmatch`
==================  =========================================================
"""

import difflib
import fnmatch
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from jax import core

from .checks import Static
from .leaves import Tree, is_nothing, paths
from .model_trees import is_function, named_leaves
from .ranges import Convert
from .value import value


class MaskedNode(NamedTuple):
    """Takes the place of a leaf that is hidden from a masked transformation."""


@jax.tree_util.register_static
class AllParams:
    """A tree without leaves that stands for all params, to find the parts of a state that are shaped like them."""

    def __eq__(self, other):
        return isinstance(other, AllParams)

    def __hash__(self):
        return hash(AllParams)


def _is_place(x: Any) -> bool:
    return is_nothing(x) or isinstance(x, MaskedNode)


@value
class PathRules:
    """Assigns values by path pattern; the first match wins: `PathRules({"*/bias": False, "head/**": True})`.

    A mask or labels may also be a plain dict, which is read as path rules if one of its keys has a `*`. If no key
    has one, use this class. `resolve(tree)` returns the values in the structure of `tree`.

    Raises ValueError if a rule matches no leaf (naming the nearest paths), or if a leaf matches no rule and
    there is no default.

    >>> params = {"dense": {"kernel": 1.0, "bias": 0.0}, "head": {"bias": 0.0}}
    >>> PathRules({"head/**": "slow", "*/bias": "off", "**": "on"}).resolve(params)
    {'dense': {'bias': 'off', 'kernel': 'on'}, 'head': {'bias': 'slow'}}
    """

    rules: Static[tuple[tuple[str, Any], ...]]

    def __init__(self, rules: Any):
        object.__setattr__(self, "rules", tuple(rules.items() if isinstance(rules, dict) else rules))

    def resolve(self, tree: Tree, default: Any = None) -> Tree:
        return jax.tree.structure(tree, is_leaf=_is_place).unflatten(self.of_each(tree, default))

    def of_each(self, tree: Tree, default: Any = None) -> list[Any]:
        """Returns the value of every leaf; None and `MaskedNode` count as leaves."""
        places = named_leaves(tree, is_leaf=_is_place)
        names, used, values = [name for name, _ in places], set(), []
        for name, leaf in places:
            hits = [(pattern, v) for pattern, v in self.rules if matches(pattern, name)]
            used.update(pattern for pattern, _ in hits)
            if isinstance(leaf, MaskedNode):  # hidden from this transformation, but a rule may still name it
                values.append(leaf)
                continue
            if not hits and default is None:
                raise ValueError(f"no rule matches {name!r}; add a last rule '**' for all other leaves")
            values.append(hits[0][1] if hits else default)
        for pattern, _ in self.rules:
            if names and pattern not in used and pattern != "**":
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
                raise ValueError(f"rule {pattern!r} matches no leaf; the nearest paths are {', '.join(near)}")
        return values

    def __repr__(self):
        return f"PathRules({dict(self.rules)!r})"


def matches(pattern: str, path: str) -> bool:
    """Returns whether a pattern matches a path written with `/`.

    >>> matches("*/bias", "encoder/layer_0/bias"), matches("/*/bias", "encoder/layer_0/bias")
    (True, False)
    """
    anchored = pattern.startswith("/")
    parts = pattern.strip("/").split("/")
    return _match(parts if anchored else ["**", *parts], path.split("/"))


def _match(pattern: list[str], path: list[str]) -> bool:
    if not pattern:
        return not path
    head, *tail = pattern
    if head == "**":
        return any(_match(tail, path[i:]) for i in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], head) and _match(tail, path[1:])


@value
class Frozen:
    """Holds a pytree of plain values (bools, labels) as structure: hashable and never traced."""

    leaves: Static[tuple]
    treedef: Static[Any]

    def thaw(self) -> Tree:
        return self.treedef.unflatten(self.leaves)

    def __repr__(self):
        return repr(self.thaw())


class LeafSelector:
    """Base class of labels and masks that are computed from the params; a subclass defines `__call__`."""

    def __call__(self, params: Tree) -> Tree:
        """Returns the label, or the bool, of each leaf."""
        raise NotImplementedError

    def reasons(self, params: Tree) -> list[str]:
        """Returns what decided the label of each leaf (None counts as a leaf); `describe` prints it."""
        raise NotImplementedError

    def doubts(self, params: Tree) -> list[str]:
        """Returns a doubt, or "", for each leaf, like `GradientTransformation.doubts`."""
        return []

    def informed(self, tx: Any, params: Tree) -> Any:
        """Returns `tx`, a transformation of `partition`, with what the labels know about the leaves filled in."""
        del params
        return tx


def are_rules(x: Any) -> bool:
    """Returns whether x is a dict that is read as path rules."""
    return isinstance(x, dict) and any("*" in k for k in x if isinstance(k, str))


def _selection(name: str, x: Any, leaf: Callable[[str, Any], Any]) -> Any:
    """Returns a mask or labels in a hashable form; `leaf` checks each value."""
    return x if x is None or is_function(x) else _tree_or_rules(name, x, leaf)


def _tree_or_rules(name: str, x: Any, leaf: Callable[[str, Any], Any]) -> PathRules | Frozen:
    if isinstance(x, PathRules | Frozen):
        return x
    if are_rules(x):
        return PathRules({pattern: leaf(f"{name}[{pattern!r}]", v) for pattern, v in x.items()})
    leaves, treedef = jax.tree.flatten(x)
    return Frozen(tuple(leaf(name + p, v) for p, v in zip(paths(x), leaves, strict=True)), treedef)


def _mask_leaf(name: str, x: Any) -> bool:
    if isinstance(x, core.Tracer) or np.shape(x) != () or np.asarray(x).dtype != bool:
        hint = (
            "; write it as a rule: {" + repr(f"*/{x}") + ": False}" if isinstance(x, str) and "'" not in name else ""
        )
        raise TypeError(f"{name} must be True or False, known before tracing; got {x!r}{hint}")
    return bool(x)


def _label_leaf(name: str, x: Any) -> Any:
    try:
        hash(x)
    except TypeError as e:
        raise TypeError(f"{name} must be a hashable label such as a string, got {x!r}") from e
    return x


Mask = Annotated[Any, Convert(lambda name, x: _selection(name, x, _mask_leaf), "mask")]
"""A tree of bools (or a prefix of one), a function from params to one, or path rules. True means transformed.

If all rules of a mask have the same value, leaves that no rule matches get the opposite value:
`{"*/bias": False}` selects all leaves except the biases, and `{"*/kernel": True}` only the kernels.
"""

MaskOrFn = Tree | Callable[[Tree], Tree]
"""Optax's name for a mask, for annotations."""

Labels = Annotated[Any, Convert(lambda name, x: _selection(name, x, _label_leaf), "labels")]
"""A tree of labels (or a prefix of one), a function from params to one, or path rules."""


def resolve_mask(mask: Any, tree: Tree) -> Tree:
    """Returns the mask as a tree with a bool for each leaf of `tree` (None counts as a leaf), or for each subtree."""
    default = None
    if isinstance(mask, PathRules) and len(said := {v for _, v in mask.rules}) == 1:
        default = not said.pop()
    return _resolve("mask", mask, tree, _mask_leaf, default)


def resolve_labels(labels: Any, tree: Tree) -> Tree:
    """Returns the labels as a tree with one for each leaf of `tree` (None counts as a leaf), or for each subtree."""
    return _resolve("param_labels", labels, tree, _label_leaf, None)


def _resolve(name: str, selection: Any, tree: Tree, leaf: Callable, default: Any) -> Tree:
    if isinstance(tree, AllParams):
        return True
    if is_function(selection):
        selection = selection(tree)
        selection = None if selection is None else _tree_or_rules(name, selection, leaf)
    if selection is None:
        raise TypeError(f"`{name}` must be a tree, a function from params to one, or path rules, got None")
    return resolve_values(name, selection, tree, default)


def resolve_values(name: str, selection: PathRules | Frozen, tree: Tree, default: Any = None) -> Tree:
    """Resolves rules, or a tree of values that may be a prefix, for the leaves of `tree`; None counts as a leaf."""
    if isinstance(selection, PathRules):
        return selection.resolve(tree, default)
    treedef = selection.treedef
    try:
        treedef.flatten_up_to(tree)
    except (ValueError, TypeError) as e:
        have, want = paths(selection.thaw()), paths(tree, is_nothing)
        lost = [p for p in want if not any(p.startswith(h) for h in have)]
        if lost:
            leaves = dict(zip(want, jax.tree.leaves(tree, is_leaf=is_nothing), strict=True))
            raise ValueError(
                f"`{name}` has no leaf at {lost[0]}; params has one of shape {np.shape(leaves[lost[0]])}"
            ) from e
        strange = [h for h in have if not any(p.startswith(h) for p in want)]
        if not strange:
            raise ValueError(
                f"`{name}` has other containers than params: {treedef} and "
                f"{jax.tree.structure(tree, is_leaf=is_nothing)}. Path rules such as {{'*/bias': ...}} fit any"
            ) from e
        hint = ". If this dict holds path rules, write PathRules({...})" if "/" in str(strange) else ""
        raise ValueError(f"`{name}` has a leaf at {strange[0]}, where params has none{hint}") from e
    return treedef.unflatten(selection.leaves)


def broadcast_prefix(prefix: Tree, tree: Tree) -> Tree:
    """Expands a resolved mask or labels to one value for each leaf of `tree`."""
    return jax.tree.map(lambda said, part: jax.tree.map(lambda _: said, part, is_leaf=is_nothing), prefix, tree)


def select_leaves(mask: Tree, tree: Tree, nothing: Any = None) -> Tree:
    """Returns `tree` with `nothing` in place of the leaves and subtrees that a resolved mask leaves out."""
    return jax.tree.map(lambda chosen, x: x if chosen else nothing, mask, tree)


def merge(mask: Tree, chosen: Tree, rest: Tree) -> Tree:
    """Returns the leaves of `chosen` where a resolved mask is True, and those of `rest` elsewhere."""
    return jax.tree.map(lambda m, x, y: x if m else y, mask, chosen, rest)
