"""SPAM: Adam that bounds each gradient by its own second moment and resets its moments periodically."""

from typing import NamedTuple

import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import map_leaves, zeros_like
from ..core.norms import abs_sq, safe_sqrt
from ..core.paths import Mask
from ..core.ranges import Count, Decay, DType, NonNegative, PositiveBound, PositiveInt
from ..core.schedule import Rate
from ..core.slots import Counter, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate


class ScaleBySpamState(NamedTuple):
    """`count`: steps done. `mu`, `nu`: running means of g and |g|² since the last reset."""

    count: Counter
    mu: Signed
    nu: Unsigned


@transformation
class scale_by_spam(GradientTransformation):
    """SPAM's direction: u = φ · c · m / (√v + eps), with |g| ≤ √(threshold · v) for each element.

    m and v are Adam's means, c = √(1 − b2ᵗ) / (1 − b1ᵗ). At every step t that is a multiple of reset_interval, m and
    v are reset to 0. φ then rises from 0.01 to 1 in a half cosine over warmup_steps; before the first reset,
    φ = 1. The bound uses the v before the step. It applies from settle_steps after the start and after each reset.

    Args:
        b1, b2: decay rates of the two means, in [0, 1).
        eps: added outside the root, ≥ 0.
        threshold: the largest ratio of |g|² to v, θ in the paper, > 0.
        reset_interval: steps from one reset to the next, ΔT in the paper, ≥ 1.
        warmup_steps: N in the paper, ≥ 0.
        settle_steps: number of steps without a bound after the start or a reset, because v is not reliable yet, ≥ 0.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params.

    Huang et al. 2025, arXiv:2501.06842, algorithm 1, with the full momentum. settle_steps, and c, which is not reset,
    follow their code.

    >>> tx, g = scale_by_spam(threshold=4.0, settle_steps=1), jnp.array(1.0)
    >>> _, state = tx.update(g, tx.init(g))
    >>> tx.update(100 * g, state)[1].nu.item() < 0.002  # a spike counts as 2·√v, not as 100
    True

    Differs from their code: where v is 0, g is not bounded. In their code such an element never moves again.
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-6
    threshold: PositiveBound = 5000.0
    reset_interval: PositiveInt = 500
    warmup_steps: Count = 150
    settle_steps: Count = 20
    state_dtype: Static[DType | None] = None

    def init(self, params):
        mu = zeros_like(params, self.state_dtype)
        return ScaleBySpamState(zero_count(), mu, zeros_like(params, self.state_dtype, real=True))

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2
        since = t % self.reset_interval
        rising = (t >= self.reset_interval) & (since < self.warmup_steps)
        phi = 1 - 0.495 * (1 + jnp.cos(jnp.pi * since / (self.warmup_steps + 1)))
        c = jnp.where(rising, phi, 1.0) * jnp.sqrt(1 - b2**t) / (1 - b1**t)

        def leaf(g, m, v):
            m, v = (jnp.where(since == 0, 0, x) for x in (m, v))
            bound = v * self.threshold
            spike = (since >= self.settle_steps) & (bound > 0) & (abs_sq(g) > bound)
            g = jnp.where(spike, jnp.sign(g) * safe_sqrt(bound), g)
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * abs_sq(g)
            return c * m / (jnp.sqrt(v) + self.eps), m, v

        updates, mu, nu = map_leaves(leaf, updates, state.mu, state.nu, params=params)
        return updates, ScaleBySpamState(t, mu, nu)


@checked
def spam(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    *,
    threshold: PositiveBound = 5000.0,
    reset_interval: PositiveInt = 500,
    warmup_steps: Count = 150,
    settle_steps: Count = 20,
    state_dtype: DType | None = None,
) -> chain:
    """SPAM: w ← w − learning_rate · (φ·c·m / (√v + eps) + weight_decay · w). See `scale_by_spam`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 1e-3 is the authors'.
        weight_decay, mask: as in `add_decayed_weights`.

    Huang et al. 2025, arXiv:2501.06842.

    >>> spam(1e-3, reset_interval=1000)
    chain(scale_by_spam(reset_interval=1000), add_decayed_weights(), scale_by_learning_rate(0.001))
    """
    rule = scale_by_spam(b1, b2, eps, threshold, reset_interval, warmup_steps, settle_steps, state_dtype)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
