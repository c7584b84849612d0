"""zclip: bounds the gradient's norm by its distance from its own mean."""

from typing import Annotated, NamedTuple

import jax.numpy as jnp

from ...core.leaves import cast_like, map_leaves
from ...core.norms import safe_sqrt
from ...core.ranges import Decay, Integer, Positive, PositiveBound
from ...core.slots import Counter, Number
from ...core.transformation import GradientTransformation, increment, transformation, zero_count
from .clip import norm_without_nans


class ZClipState(NamedTuple):
    """`count`: norms seen. `mean`, `var`: those of all norms during the warm-up, then moving averages."""

    count: Counter
    mean: Number
    var: Number


@transformation
class zclip(GradientTransformation):
    """Bounds the global norm n if it is far above its mean: u = g · n*/n.

    z = (n − μ)/(σ + eps), and n* = μ + σ·z_threshold²/z if z > z_threshold, else n; then
    μ ← decay·μ + (1 − decay)·n* and σ² ← decay·σ² + (1 − decay)·(n* − μ)².
    The farther a norm is from the mean, the more of the distance is removed. During the first `warmup_steps` steps
    nothing is clipped, and μ and σ² are the mean and variance of the norms; put a `clip_by_global_norm` after it to
    bound these steps.

    A leaf with a NaN is left out of the norm, as in `clip_by_global_norm`. An infinite norm makes every finite leaf
    zero and does not enter the mean. Nothing is clipped while σ = 0, that is, while all norms have been equal.

    Args:
        decay: of the mean and variance, α in the paper, in [0, 1).
        z_threshold: how many standard deviations above the mean clipping begins, > 0.
        warmup_steps: how many norms are only measured, a whole number ≥ 2.
        eps: added to the standard deviation, > 0.

    Kumar, Owen, Chowdhury & Güra 2025, arXiv:2504.02507, with its reciprocal clipping. The variance is taken about
    the new mean, as in the authors' code. That code also bounds all norms by 1: add `clip_by_global_norm(1.0)` after
    this.

    >>> tx = zclip(z_threshold=1.0, warmup_steps=2)
    >>> state = tx.init({"w": 0.0})
    >>> for g in (1.0, 3.0, 4.0):  # a mean of 2 and a deviation of 1, then z = 2
    ...     u, state = tx.update({"w": g}, state)
    >>> round(u["w"].item(), 3)
    2.5
    """

    clips = True
    decay: Decay = 0.97
    z_threshold: PositiveBound = 2.5
    warmup_steps: Annotated[int, Integer("[2, inf)")] = 25
    eps: Positive = 1e-6

    def init(self, params):
        return ZClipState(zero_count(), jnp.zeros([]), jnp.zeros([]))

    def update(self, updates, state, params=None, **extra):
        norm, (count, mean, var) = norm_without_nans(updates), state
        warm, t = count < self.warmup_steps, increment(count)
        deviation = safe_sqrt(var)
        high = ~warm & (var > 0) & (norm - mean > self.z_threshold * (deviation + self.eps))
        apart = jnp.where(high, norm - mean, 1.0)
        target = mean + deviation * self.z_threshold**2 * (deviation + self.eps) / apart
        target = jnp.where(high, target, norm)
        factor = jnp.where(high, target / jnp.where(high, norm, 1.0), 1.0)
        factor = jnp.where(jnp.isfinite(norm), factor, 0.0)

        rate = jnp.where(warm, 1 / t, 1 - self.decay)  # 1/t: Welford's mean and variance
        new_mean = mean + rate * (target - mean)
        past = jnp.where(warm, mean, new_mean)
        new_var = var + rate * ((target - past) * (target - new_mean) - var)

        seen, new = jnp.isfinite(norm), ZClipState(t, new_mean, new_var)
        new = ZClipState(*(cast_like(jnp.where(seen, x, old), old) for x, old in zip(new, state, strict=True)))
        return map_leaves(lambda g: g * factor, updates, params=params), new
