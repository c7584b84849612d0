"""skip_spikes: skips steps whose gradient is far larger than recent ones."""

from typing import NamedTuple

import jax.numpy as jnp

from ...core.checks import Static
from ...core.norms import global_norm
from ...core.ranges import Count, PositiveBound, PositiveInt
from ...core.slots import Counter, States
from ...core.transformation import GradientTransformation, Transformation, increment, transformation, zero_count
from ..wrapping.guard import update_if
from .rolling import quantile, record, rolling


class SkipSpikesState(NamedTuple):
    """`consecutive_skips`: skips in a row. `total_skipped`: skips so far. `norms`: the last norms, with spikes."""

    consecutive_skips: Counter
    total_skipped: Counter
    norms: States
    inner_state: States


@transformation
class skip_spikes(GradientTransformation):
    """Skips a step (zero updates, unchanged inner state) if ‖g‖ > factor · median of the last norms.

    A clipped spike still changes the momentum; a skipped one has no effect. All finite norms are recorded, so the
    median follows if the norms rise for good. After `max_consecutive_skips` skips in a row a step is let through,
    unless its norm is not finite: such a step is always skipped.

    Args:
        inner: the transformation to guard.
        factor: the largest ratio of a norm to the median of those before it, > 0.
        window: how many norms the median is taken over, a whole number ≥ 1.
        warmup_steps: how many norms to record before a step may be skipped, ≥ 0; a larger value than `window` counts
            as `window`.
        max_consecutive_skips: how many spikes in a row may be skipped, ≥ 0.

    Skipping as in Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, section 5.1, where it is done by hand.

    >>> from functional_opt import scale
    >>> tx = skip_spikes(scale(-1.0), factor=5.0, warmup_steps=2)
    >>> state = tx.init({"w": 0.0})
    >>> for g in (1.0, 2.0, 8.0):
    ...     u, state = tx.update({"w": g}, state)
    >>> u["w"].item(), int(state.total_skipped)
    (0.0, 1)
    """

    inner: Transformation
    factor: PositiveBound = 5.0
    window: Static[PositiveInt] = 100
    warmup_steps: Count = 20
    max_consecutive_skips: Count = 10

    def init(self, params):
        return SkipSpikesState(zero_count(), zero_count(), rolling(self.window), self.inner.init(params))

    def update(self, updates, state, params=None, **extra):
        norm, median = global_norm(updates), quantile(state.norms, 0.5)
        known = (median > 0) & (state.norms.count >= jnp.minimum(self.warmup_steps, self.window))
        spike = known & (norm > self.factor * median) & (state.consecutive_skips < self.max_consecutive_skips)
        skip = spike | ~jnp.isfinite(norm)
        updates, inner_state = update_if(~skip, self.inner, updates, state.inner_state, params, extra)
        in_a_row = jnp.where(skip, increment(state.consecutive_skips), 0)
        total = jnp.where(skip, increment(state.total_skipped), state.total_skipped)
        return updates, SkipSpikesState(in_a_row, total, record(state.norms, norm), inner_state)
