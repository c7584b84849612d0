"""MADGRAD: dual averaging with a cube root, and momentum as an average of iterates."""

from typing import NamedTuple

import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import copy_of, map_leaves, zeros_like
from ..core.norms import abs_sq
from ..core.ranges import Decay, DType, NonNegative
from ..core.schedule import Rate, rate_at
from ..core.slots import Counter, Params, Signed16, Unsigned16
from ..core.transformation import GradientTransformation, increment, needs_params, transformation, zero_count
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights


class MadgradState(NamedTuple):
    """`count`: steps done. `grad_sum_sq`: Σλ|g|². `s`: Σλg. `x0`: the params at the start."""

    count: Counter
    grad_sum_sq: Unsigned16
    s: Signed16
    x0: Params


@transformation
class scale_by_madgrad(GradientTransformation):
    """MADGRAD: s ← s + λ·g; v ← v + λ·|g|²; u = (1 − momentum)·(x0 − s / (∛v + eps) − w).

    λ = (learning_rate + eps)·√t. The sums already include the learning rate, so do not scale u by it.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.
        momentum: share of w in the next w, in [0, 1).
        eps: added to the root and to the learning rate, ≥ 0.
        state_dtype: storage dtype of v and s. None means the params' dtype, or float32 for 16-bit params. x0 always
            has that dtype: if it were rounded, the params would move to another point.

    Raises ValueError without params.

    Defazio & Jelassi 2021, arXiv:2101.11075; eps in the rate is from their code.

    >>> tx, w = scale_by_madgrad(1.0, momentum=0.0), jnp.array(1.0)
    >>> tx.update(jnp.array(8.0), tx.init(w), w)[0].round(3).item()
    -2.0

    Differs from Optax: x0 starts as a copy of the params, or as zeros if these are only shapes. Sums are float32 for
    16-bit params.
    """

    learning_rate: Rate
    momentum: Decay = 0.9
    eps: NonNegative = 1e-6
    state_dtype: Static[DType | None] = None

    def init(self, params):
        v = zeros_like(params, self.state_dtype, real=True)
        return MadgradState(zero_count(), v, zeros_like(params, self.state_dtype), copy_of(params))

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        t = increment(state.count)
        lam = (rate_at(self.learning_rate, state.count) + self.eps) * jnp.sqrt(t.astype(float))

        def leaf(g, v, s, x0, w):
            v = v + lam * abs_sq(g)
            s = s + lam * g
            root = jnp.where(v > 0, jnp.cbrt(jnp.where(v > 0, v, 1.0)), 0.0) + self.eps  # with derivative 0 at 0
            z = x0 - jnp.where(v > 0, s / jnp.where(v > 0, root, 1.0), 0.0)
            return (1 - self.momentum) * (z - w), v, s

        slots = (state.grad_sum_sq, state.s)
        updates, v, s = map_leaves(leaf, updates, *slots, read=(state.x0, params), params=params)
        return updates, MadgradState(t, v, s, state.x0)


@checked
def madgrad(
    learning_rate: Rate,
    momentum: Decay = 0.9,
    weight_decay: Rate = 0.0,
    eps: NonNegative = 1e-6,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """MADGRAD: w ← momentum·w + (1 − momentum)·(x0 − s / (∛v + eps)). See `scale_by_madgrad`.

    Args:
        weight_decay: as in the paper, the decay is coupled: weight_decay · w is added to the gradient.

    Defazio & Jelassi 2021, arXiv:2101.11075.

    >>> madgrad(0.01)
    chain(add_decayed_weights(), scale_by_madgrad(0.01))
    """
    return chain(add_decayed_weights(weight_decay), scale_by_madgrad(learning_rate, momentum, eps, state_dtype))
