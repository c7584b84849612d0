"""MoMo: momentum, or Adam, with a step size that the loss bounds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static
from ..core.leaves import cast_like, map_leaves, zeros_like
from ..core.norms import abs_sq, safe_sqrt
from ..core.ranges import Decay, DType, NonNegative, Positive, Real
from ..core.schedule import Rate, rate_at
from ..core.slots import Counter, Number, Signed, Unsigned
from ..core.transformation import (
    GradientTransformation,
    increment,
    needs_params,
    needs_value,
    transformation,
    zero_count,
)
from .distance import dot, largest_size, ratio, total_over_leaves


class MomoState(NamedTuple):
    """`exp_avg`: d. `barf`: f̄. `gamma`: γ. `lb`: the current lower bound. `count`: steps done."""

    exp_avg: Signed
    barf: Number
    gamma: Number
    lb: Number
    count: Counter


class MomoAdamState(NamedTuple):
    """`exp_avg`: d. `exp_avg_sq`: v. `barf`: f̄. `gamma`: γ. `lb`: the current lower bound. `count`: steps done."""

    exp_avg: Signed
    exp_avg_sq: Unsigned
    barf: Number
    gamma: Number
    lb: Number
    count: Counter


def _step_size(
    tx: Any,
    rate: Any,
    share: Any,
    height: jax.Array,
    slope: jax.Array,
    size: jax.Array,
    square: jax.Array,
    lower_bound: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns τ and the next lower bound.

    `height` is f̄ − γ, `slope` is ⟨d, w⟩, `share` is the total weight in d's mean so far, and size² · `square` is
    ‖d‖².
    """
    damp, low = 1 + rate * tx.weight_decay, lower_bound
    if tx.adapt_lower_bound:
        least = (damp * height + slope) / (damp * share)
        low = jnp.where(least < low, jnp.maximum(least / 2, tx.lower_bound), low)
    inverse = 1 / size  # XLA turns a / s / s into a / (s · s), which over- or underflows
    most = ratio(jnp.maximum(damp * (height - share * low) + slope, 0.0), square) * inverse * inverse
    tau = jnp.minimum(rate / share, most)
    if tx.adapt_lower_bound:
        low = jnp.maximum((height + slope - tau * size * square * size / 2) / share, tx.lower_bound)
    return tau, cast_like(low, lower_bound)


@transformation
class momo(GradientTransformation):
    """MoMo: w ← (w − τ·d) / (1 + learning_rate · weight_decay), d a running mean of g.

    τ = min(learning_rate, max(h, 0) / ‖d‖²), h = (1 + learning_rate · weight_decay)·(f̄ − γ − lower_bound) + ⟨d, w⟩,
    where f̄ and γ are running means of the loss and of ⟨g, w⟩. The step goes at most to the point where the averaged
    linear model of the loss reaches its lower bound.

    Args:
        learning_rate: the largest step size: a number ≥ 0, a schedule, or a function of the count.
        beta: decay rate of the means, in [0, 1); they start from the first step's values.
        lower_bound: lower bound of the loss.
        weight_decay: ≥ 0.
        adapt_lower_bound: whether lower_bound is only an initial guess, raised as the losses allow (MoMo*).
        state_dtype: storage dtype of d. None means the params' dtype, or float32 for 16-bit params.

    `update` takes the loss at the params as `value=`. Raises ValueError without it or without params.

    Schaipp, Ohana, Eickenberg, Defazio & Gower 2023, arXiv:2305.07583.

    >>> tx, w = momo(10.0), jnp.array(3.0)
    >>> tx.update(w, tx.init(w), w, value=w**2 / 2)[0].item()
    -1.5

    Differs from Optax if weight_decay > 0: as in the paper, the entire step is divided, not only w.
    """

    learning_rate: Rate = 1.0
    beta: Decay = 0.9
    lower_bound: Real = 0.0
    weight_decay: NonNegative = 0.0
    adapt_lower_bound: Static[bool] = False
    state_dtype: Static[DType | None] = None

    def init(self, params):
        d, low = zeros_like(params, self.state_dtype), jnp.asarray(self.lower_bound, float)
        return MomoState(d, jnp.zeros([]), jnp.zeros([]), low, zero_count())

    def update(self, updates, state, params=None, *, value=None, **extra):
        needs_params(params, self)
        value, rate = jnp.asarray(needs_value(value, self), float), rate_at(self.learning_rate, state.count)
        b = jnp.where(state.count > 0, self.beta, 0.0)
        f = b * state.barf + (1 - b) * value
        gamma = b * state.gamma + (1 - b) * total_over_leaves(dot, updates, params)
        updates, d = map_leaves(lambda g, d: (g, b * d + (1 - b) * g), updates, state.exp_avg)
        slope = total_over_leaves(lambda g, d, w: dot(d, w), updates, d, params)
        size = largest_size(updates, d)
        square = total_over_leaves(lambda g, d: abs_sq(d / size), updates, d)
        tau, low = _step_size(self, rate, 1.0, f - gamma, slope, size, square, state.lb)
        shrink = rate * self.weight_decay / (1 + rate * self.weight_decay)

        def leaf(g, d, w):
            return -(1 - shrink) * tau * d - shrink * w

        updates = map_leaves(leaf, updates, read=(d, params), params=params)
        f, gamma = cast_like(f, state.barf), cast_like(gamma, state.gamma)
        return updates, MomoState(d, f, gamma, low, increment(state.count))


@transformation
class momo_adam(GradientTransformation):
    """MoMo-Adam: w ← (w − τ·d / D) / (1 + learning_rate · weight_decay), D = √(v / (1 − b2ᵗ)) + eps.

    d and v are Adam's running means of g and |g|². τ = min(learning_rate / ρ, max(h, 0) / ⟨d, d / D⟩), ρ = 1 − b1ᵗ,
    h = (1 + learning_rate · weight_decay)·(f̄ − γ − ρ·lower_bound) + ⟨d, w⟩, where f̄ and γ are running means of the
    loss and of ⟨g, w⟩.

    Args:
        learning_rate: the largest step size: a number ≥ 0, a schedule, or a function of the count.
        b1: decay rate of d, f̄ and γ, in [0, 1).
        b2: decay rate of v, in [0, 1).
        eps: > 0.
        lower_bound, weight_decay, adapt_lower_bound: as in `momo`.
        state_dtype: storage dtype of d and v. None means the params' dtype, or float32 for 16-bit params.

    `update` takes the loss at the params as `value=`. Raises ValueError without it or without params.

    Schaipp, Ohana, Eickenberg, Defazio & Gower 2023, arXiv:2305.07583.

    >>> tx, w = momo_adam(10.0), jnp.array(3.0)
    >>> round(tx.update(w, tx.init(w), w, value=w**2 / 2)[0].item(), 3)
    -1.5

    Differs from Optax if weight_decay > 0: as in the paper, the entire step is divided, not only w.
    """

    learning_rate: Rate = 1e-2
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: Positive = 1e-8
    lower_bound: Real = 0.0
    weight_decay: NonNegative = 0.0
    adapt_lower_bound: Static[bool] = False
    state_dtype: Static[DType | None] = None

    def init(self, params):
        d, v = zeros_like(params, self.state_dtype), zeros_like(params, self.state_dtype, real=True)
        low = jnp.asarray(self.lower_bound, float)
        return MomoAdamState(d, v, jnp.zeros([]), jnp.zeros([]), low, zero_count())

    def update(self, updates, state, params=None, *, value=None, **extra):
        needs_params(params, self)
        value, rate = jnp.asarray(needs_value(value, self), float), rate_at(self.learning_rate, state.count)
        t, b1, b2 = increment(state.count), self.b1, self.b2
        f = b1 * state.barf + (1 - b1) * value
        gamma = b1 * state.gamma + (1 - b1) * total_over_leaves(dot, updates, params)

        def moments(g, d, v):
            return g, b1 * d + (1 - b1) * g, b2 * v + (1 - b2) * abs_sq(g)

        def by(v):
            return safe_sqrt(v / (1 - b2**t)) + self.eps

        updates, d, v = map_leaves(moments, updates, state.exp_avg, state.exp_avg_sq)
        slope = total_over_leaves(lambda g, d, w: dot(d, w), updates, d, params)
        size = largest_size(updates, d)
        square = total_over_leaves(lambda g, d, v: abs_sq(d / size) / by(v), updates, d, v)
        tau, low = _step_size(self, rate, 1 - b1**t, f - gamma, slope, size, square, state.lb)
        shrink = rate * self.weight_decay / (1 + rate * self.weight_decay)

        def leaf(g, d, v, w):
            return -(1 - shrink) * tau * d / by(v) - shrink * w

        updates = map_leaves(leaf, updates, read=(d, v, params), params=params)
        f, gamma = cast_like(f, state.barf), cast_like(gamma, state.gamma)
        return updates, MomoAdamState(d, v, f, gamma, low, t)
