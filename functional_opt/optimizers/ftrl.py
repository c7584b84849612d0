"""FTRL-Proximal: follow the regularised leader; it can set weights to exactly 0."""

from typing import Annotated, NamedTuple

import jax.numpy as jnp

from ..core.checks import Static
from ..core.leaves import full_like, map_leaves, zeros_like
from ..core.norms import abs_sq
from ..core.ranges import DType, NonNegative, Range, Scalar
from ..core.schedule import Rate, is_concrete, rate_at
from ..core.slots import Counter, Signed16, Unsigned16
from ..core.transformation import GradientTransformation, increment, needs_params, transformation, zero_count


class FtrlState(NamedTuple):
    """`count`: steps done. `accumulator`: Σ|g|². `linear`: the sum z of gradients and proximal terms."""

    count: Counter
    accumulator: Unsigned16
    linear: Signed16


@transformation
class ftrl(GradientTransformation):
    """FTRL-Proximal, which includes the learning rate α = learning_rate, with p = −learning_rate_power.

    n' = n + |g|²; z ← z + g + 2·l2_shrinkage·w − (n'ᵖ − nᵖ) / α · w; then n ← n' and
    w ← −(z − l1·sign(z)) / (n'ᵖ / α + beta / α + 2·l2) where |z| > l1, else 0.

    The updates are the new weights minus the old ones, so this comes last in a chain, without
    `scale_by_learning_rate`. A weight whose gradients have all been 0 becomes 0 at the first step, because z does not
    contain its initial value. A step with α = 0, as at the end of many schedules, changes only the count. Where |g|²
    overflows float32, that element and its state do not change. z is in units of 1/α: if α falls, the weights shrink
    with it.

    Args:
        learning_rate: a number > 0, a schedule, or a function of the count.
        learning_rate_power: ≤ 0; −1/2 is the paper's value, 0 gives a constant rate.
        initial_accumulator_value: initial value of n, ≥ 0.
        l1, l2: strengths of the two penalties, ≥ 0. With a positive l1, weights can become exactly 0.
        l2_shrinkage: strength of an L2 penalty that is added to the gradient in z but not in n, ≥ 0.
        beta: the paper's β, ≥ 0.
        state_dtype: storage dtype of n and z. None means the params' dtype, or float32 for 16-bit params.

    Raises ValueError without params.

    McMahan et al. 2013, Ad Click Prediction: a View from the Trenches, KDD, algorithm 1.

    >>> tx, w = ftrl(0.5, l1=1.0), jnp.array([1.0, 1.0])
    >>> u, state = tx.update(jnp.array([-4.0, 0.1]), tx.init(w), w)
    >>> [round(x, 3) for x in (w + u).tolist()]
    [1.295, 0.0]
    """

    learning_rate: Rate
    learning_rate_power: Annotated[Scalar, Range("(-inf, 0]")] = -0.5
    initial_accumulator_value: NonNegative = 0.1
    l1: NonNegative = 0.0
    l2: NonNegative = 0.0
    l2_shrinkage: NonNegative = 0.0
    beta: NonNegative = 0.0
    state_dtype: Static[DType | None] = None

    def __post_init__(self):
        if is_concrete(self.learning_rate) and self.learning_rate == 0:
            raise ValueError("learning_rate must be in (0, inf), got 0: FTRL divides by it")

    def init(self, params):
        n = full_like(params, self.initial_accumulator_value, self.state_dtype, real=True)
        return FtrlState(zero_count(), n, zeros_like(params, self.state_dtype))

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        rate = rate_at(self.learning_rate, state.count)
        moves = rate != 0
        alpha = jnp.where(moves, rate, 1.0)

        def leaf(g, n, z, w):
            n_new = n + abs_sq(g)
            before, after = n**-self.learning_rate_power, n_new**-self.learning_rate_power
            z_new = z + g + 2 * self.l2_shrinkage * w - (after - before) / alpha * w
            curvature = (after + self.beta) / alpha + 2 * self.l2
            chosen = (jnp.abs(z_new) > self.l1) & (curvature > 0)
            new = (self.l1 * jnp.sign(z_new) - z_new) / jnp.where(chosen, curvature, 1.0)
            step = moves & (n_new < jnp.inf)
            u = jnp.where(step, jnp.where(chosen, new, 0.0) - w, 0.0)
            return u, jnp.where(step, n_new, n), jnp.where(step, z_new, z)

        updates, *slots = map_leaves(leaf, updates, state.accumulator, state.linear, read=(params,), params=params)
        return updates, FtrlState(increment(state.count), *slots)
