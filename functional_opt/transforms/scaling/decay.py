"""add_decayed_weights: decoupled weight decay."""

import jax

from ...core import kernels
from ...core.checks import Static
from ...core.leaves import check_leaves, map_leaves
from ...core.model_trees import visible
from ...core.paths import Mask, merge, resolve_mask, select_leaves
from ...core.schedule import Rate, Schedule
from ...core.transformation import EmptyState, GradientTransformation, needs_params, transformation, zero_count
from .learning_rate import ScaleByScheduleState, rate_now

AddDecayedWeightsState = EmptyState
"""Optax's name for the state, for older scripts."""


@transformation
class add_decayed_weights(GradientTransformation):
    """Adds weight decay: u = g + weight_decay · w. Placed before the learning rate, it is AdamW's decoupled decay.

    Args:
        weight_decay: a number ≥ 0, a schedule, or a function of the count.
        mask: which leaves decay: a tree of bools (or a prefix of one), a function from params to one, or
            path rules such as `{"*/bias": False}`; None for all.

    Raises ValueError without params, or naming the leaf if the mask does not fit them.

    Loshchilov & Hutter 2017, arXiv:1711.05101.

    >>> tx = add_decayed_weights(0.1, mask={"*/bias": False})
    >>> params = {"dense": {"kernel": 2.0, "bias": 2.0}}
    >>> u, _ = tx.update({"dense": {"kernel": 0.0, "bias": 0.0}}, tx.init(params), params)
    >>> round(u["dense"]["kernel"].item(), 3), u["dense"]["bias"]
    (0.2, 0.0)

    Differs from Optax: path rules; a mask does not change the structure of the state.
    """

    weight_decay: Rate = 0.0
    mask: Static[Mask | None] = None

    def init(self, params):
        if self.mask is not None:
            resolve_mask(self.mask, params)  # a mask that does not fit is an error before training starts
        return ScaleByScheduleState(zero_count()) if isinstance(self.weight_decay, Schedule) else EmptyState()

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        rate, state = rate_now(self.weight_decay, state)

        def decay(u):
            return map_leaves(lambda g, w: g + rate * w, u, read=(params,), params=params)

        if self.mask is None:
            return decay(updates), state
        params = visible(params, updates)
        check_leaves(updates, params)
        chosen = resolve_mask(self.mask, params)
        return merge(chosen, decay(select_leaves(chosen, updates)), updates), state

    def as_kernel(self, state, params):
        rate, _ = rate_now(self.weight_decay, state)
        chosen = None if self.mask is None else resolve_mask(self.mask, visible(params, None))
        return (kernels.KernelOp("decay", (rate,), only=chosen),)

    def touched_leaves(self, params):
        """Returns a mask of the leaves that it changes, for `explain`."""
        return jax.tree.map(lambda _: True, params) if self.mask is None else resolve_mask(self.mask, params)
