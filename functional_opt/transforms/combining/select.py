"""masked, partition, freeze, selective_transform: transformations of some of the leaves."""

import copy
from dataclasses import field
from typing import Any, NamedTuple

import jax

from ...core.checks import Static
from ...core.leaves import Tree, check_leaves, is_nothing, map_leaves, paths
from ...core.model_trees import visible
from ...core.paths import (
    AllParams,
    Labels,
    LeafSelector,
    Mask,
    MaskedNode,
    merge,
    resolve_labels,
    resolve_mask,
    select_leaves,
)
from ...core.slots import States
from ...core.state_check import wrong_state
from ...core.transformation import (
    EmptyState,
    GradientTransformation,
    Transformation,
    as_transformation,
    transformation,
)


class MaskedState(NamedTuple):
    """`inner_state`: the state of the inner transformation, `MaskedNode()` for the leaves or parts left out."""

    inner_state: States


@transformation
class masked(GradientTransformation):
    """Transforms the leaves where the mask is True and passes the others through as they are.

    Args:
        inner: a gradient transformation.
        mask: a tree of bools (or a prefix of one), a function from params to one, or path rules such as
            `{"encoder/**": False}`. It is resolved on the params, or on the updates if there are no params.
        mask_compatible_extra_args: whether extra arguments of the same structure as the updates are
            masked too.

    Raises ValueError naming the leaf if the mask does not fit, TypeError for a mask that does not hold bools.

    >>> from functional_opt import scale
    >>> tx = masked(scale(-1.0), {"w": True, "b": False})
    >>> tx.update({"w": 1.0, "b": 1.0}, tx.init({"w": 0.0, "b": 0.0}))[0]["b"]
    1.0

    Differs from Optax: path rules. As in Optax, True means transformed, and leaves left out are not frozen.
    """

    inner: Transformation
    mask: Static[Mask]
    mask_compatible_extra_args: Static[bool] = False

    def init(self, params):
        return MaskedState(self.inner.init(_own(resolve_mask(self.mask, params), params, params)))

    def update(self, updates, state, params=None, **extra):
        params = None if params is None else visible(params, updates)
        chosen = resolve_mask(self.mask, updates if params is None else params)
        extra = _mask_extra(chosen, updates, extra) if self.mask_compatible_extra_args else extra
        return _on_some(self.inner, chosen, updates, updates, state, params, extra)


class PartitionState(NamedTuple):
    """`inner_states`: a dict from label to the `MaskedState` of its transformation."""

    inner_states: States


@transformation
class partition(GradientTransformation):
    """Sends each leaf to the transformation of its label.

    Args:
        transforms: a dict from label to gradient transformation.
        param_labels: a tree of labels (or a prefix of one), a function from params to one, or path rules
            such as `{"head/**": "adam", "**": "sgd"}`.
        mask_compatible_extra_args: whether extra arguments of the same structure as the updates are split
            along with them.

    Raises ValueError naming a leaf whose label has no transformation.

    >>> from functional_opt import scale
    >>> tx = partition({"up": scale(1.0), "down": scale(-1.0)}, {"*/bias": "up", "**": "down"})
    >>> params = {"dense": {"bias": 1.0, "kernel": 1.0}}
    >>> jax.tree.map(float, tx.update(params, tx.init(params))[0])
    {'dense': {'bias': 1.0, 'kernel': -1.0}}
    """

    transforms: dict[Any, GradientTransformation]
    param_labels: Static[Labels]
    mask_compatible_extra_args: Static[bool] = False

    def __post_init__(self):
        if not isinstance(self.transforms, dict):
            raise TypeError(f"transforms must be a dict from label to transformation, got {self.transforms!r}")
        wrapped = {label: as_transformation(t, f"transforms[{label!r}]") for label, t in self.transforms.items()}
        object.__setattr__(self, "transforms", wrapped)

    def init(self, params):
        if isinstance(params, AllParams):
            return PartitionState({label: MaskedState(tx.init(params)) for label, tx in self.transforms.items()})
        labels = self._labels(params)
        states = {}
        for label, tx in self.resolved_for(params).transforms.items():
            chosen = jax.tree.map(lambda own, label=label: own == label, labels)
            states[label] = MaskedState(tx.init(_own(chosen, params, params)))
        return PartitionState(states)

    def update(self, updates, state, params=None, **extra):
        if not (isinstance(state.inner_states, dict) and state.inner_states.keys() == self.transforms.keys()):
            expected = f"a PartitionState with the labels {[*self.transforms]}"
            raise ValueError(wrong_state("partition", expected, state.inner_states))
        params = None if params is None else visible(params, updates)
        labels = self._labels(updates if params is None else params)
        new_updates, states = updates, {}
        for label, tx in self.resolved_for(updates if params is None else params).transforms.items():
            chosen = jax.tree.map(lambda own, label=label: own == label, labels)
            more = _mask_extra(chosen, updates, extra) if self.mask_compatible_extra_args else extra
            new_updates, states[label] = _on_some(
                tx, chosen, updates, new_updates, state.inner_states[label], params, more
            )
        return new_updates, PartitionState(states)

    def resolved_for(self, params):
        """Returns itself, its transformations informed by the labels; `muon_labels` knows the axes of matrices."""
        if not isinstance(self.param_labels, LeafSelector):
            return self
        transforms = {label: self.param_labels.informed(tx, params) for label, tx in self.transforms.items()}
        if all(tx is self.transforms[label] for label, tx in transforms.items()):
            return self
        new = copy.copy(self)
        object.__setattr__(new, "transforms", transforms)
        return new

    def _labels(self, params: Tree) -> Tree:
        labels = resolve_labels(self.param_labels, params)
        for path, label in zip(paths(labels), jax.tree.leaves(labels), strict=True):
            if label not in self.transforms:
                raise ValueError(
                    f"params{path} has the label {label!r}, which has no transformation; there are "
                    f"{list(self.transforms)}"
                )
        return labels


multi_transform, MultiTransformState = partition, PartitionState
"""Optax's old names for these two."""


def _on_some(
    tx: GradientTransformation, chosen: Tree, updates: Tree, rest: Tree, state: MaskedState, params: Tree, extra: dict
) -> tuple[Tree, MaskedState]:
    """Applies `tx` to the chosen leaves of `updates`; the other leaves come from `rest`."""
    try:
        inner_updates = _own(chosen, updates, updates)
        inner_params = None if params is None else _own(chosen, params, updates)
    except (TypeError, ValueError):
        if params is not None:  # raises an error that names the trees and the leaf, which JAX's does not
            check_leaves(updates, params)
        raise
    new, inner_state = tx.update(inner_updates, state.inner_state, inner_params, **extra)
    return merge(chosen, new, rest), MaskedState(inner_state)


def _own(chosen: Tree, tree: Tree, updates: Tree) -> Tree:
    """Returns the tree with `MaskedNode()` for leaves that are not chosen, or None for those without an update.

    The result fits the state, whether or not `init` saw a leaf there.
    """
    part = lambda own, u, x: x if own else None if is_nothing(u) else MaskedNode()  # noqa: E731
    return jax.tree.map(part, chosen, updates, tree)


def _mask_extra(chosen: Tree, updates: Tree, extra: dict) -> dict:
    like = jax.tree.structure(updates)
    return {
        k: select_leaves(chosen, x, MaskedNode()) if jax.tree.structure(x) == like else x for k, x in extra.items()
    }


@transformation
class set_to_zero(GradientTransformation):
    """Sets all updates to zero, so that the params stay as they are.

    >>> set_to_zero().update({"w": 3.0}, EmptyState())[0]["w"].item()
    0.0
    """

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        return map_leaves(jax.numpy.zeros_like, updates, params=params), state


def freeze(mask: Any) -> GradientTransformation:
    """Returns a transformation that zeroes updates where the mask is True; last in a chain, it freezes these leaves.

    >>> tx = freeze({"encoder/*": True})
    >>> params = {"encoder": {"w": 1.0}, "head": {"w": 1.0}}
    >>> u, _ = tx.update(params, tx.init(params))
    >>> u["encoder"]["w"].item(), u["head"]["w"]
    (0.0, 1.0)
    """
    return masked(set_to_zero(), mask)


@transformation
class selective_transform(GradientTransformation):
    """Transforms the leaves where the mask is False and gives zero updates where it is True.

    Args:
        optimizer: the transformation of the leaves that train; it keeps no state for the others.
        freeze_mask: True for the leaves to freeze: one bool, a tree of them (or a prefix of one), a function
            from params to one, or path rules.

    >>> from functional_opt import trace
    >>> tx, params = selective_transform(trace(0.9), freeze_mask={"a": True, "b": False}), {"a": 1.0, "b": 1.0}
    >>> state = tx.init(params)
    >>> state.inner_states["train"].inner_state.trace["a"], tx.update(params, state)[0]["a"].item()
    (MaskedNode(), 0.0)
    """

    optimizer: Transformation
    freeze_mask: Static[Mask] = field(kw_only=True)

    def init(self, params):
        return self._by_label(params).init(params)

    def update(self, updates, state, params=None, **extra):
        params = None if params is None else visible(params, updates)
        return self._by_label(updates if params is None else params).update(updates, state, params, **extra)

    def _by_label(self, tree: Tree) -> partition:
        frozen = resolve_mask(self.freeze_mask, tree)
        labels = jax.tree.map(lambda stays: "freeze" if stays else "train", frozen)
        return partition({"train": self.optimizer, "freeze": set_to_zero()}, labels)
