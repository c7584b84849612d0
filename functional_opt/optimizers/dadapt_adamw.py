"""D-Adaptation: AdamW that estimates its own learning rate."""

from typing import NamedTuple

import jax.numpy as jnp

from ..core.checks import Static
from ..core.leaves import cast_like, map_leaves, zeros_like
from ..core.norms import abs_sq, safe_sqrt
from ..core.ranges import DType, NonNegative, Positive
from ..core.schedule import Rate, rate_at
from ..core.slots import Counter, Number, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, needs_params, transformation, zero_count
from .distance import Betas, dot, ratio, total_over_leaves


class DAdaptAdamWState(NamedTuple):
    """`exp_avg`, `exp_avg_sq`: running means of γ·g and |g|². `grad_sum`: s.

    `estim_lr`: d, the estimate of the distance to the solution. `numerator_weighted`: r. `count`: steps done.
    """

    exp_avg: Signed
    exp_avg_sq: Unsigned
    grad_sum: Signed
    estim_lr: Number
    numerator_weighted: Number
    count: Counter


@transformation
class dadapt_adamw(GradientTransformation):
    """D-Adapted AdamW: w ← w − m / (√v + eps) − γ·weight_decay·w, γ = learning_rate · d · √(1 − β2ᵗ) / (1 − β1ᵗ).

    m ← β1·m + (1 − β1)·γ·g; v ← β2·v + (1 − β2)·|g|². d starts at estim_lr0 and is the largest r / ((1 − β3)·‖s‖₁) so
    far, with r ← β3·r + (1 − β3)·γ·⟨g, s / (√v + eps)⟩, using s and v of the previous step, s ← β3·s + (1 − β3)·γ·g
    and β3 = √β2.

    Args:
        learning_rate: a factor on d: a number ≥ 0, a schedule, or a function of the count; 1.0 is the intended value.
        betas: decay rates of m and v, each in [0, 1).
        eps: added outside the root, > 0.
        estim_lr0: initial d, > 0. A value that is too small is safe; one that is too large is not.
        weight_decay: decoupled weight decay, ≥ 0.
        state_dtype: storage dtype of m, v and s. None means the params' dtype, or float32 for 16-bit params.

    Raises ValueError without params.

    Defazio & Mishchenko 2023, arXiv:2301.07733, algorithm 5.

    >>> tx, w = dadapt_adamw(), jnp.array(1.0)
    >>> u, state = tx.update(jnp.array(2.0), tx.init(w), w)
    >>> f"{u:.1e} {state.estim_lr:.1e}"
    '-1.0e-06 1.0e-06'

    Differs from Optax: a first gradient of zero gives an update of zero, not NaN.
    """

    learning_rate: Rate = 1.0
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8
    estim_lr0: Positive = 1e-6
    weight_decay: NonNegative = 0.0
    state_dtype: Static[DType | None] = None

    def init(self, params):
        return DAdaptAdamWState(
            exp_avg=zeros_like(params, self.state_dtype),
            exp_avg_sq=zeros_like(params, self.state_dtype, real=True),
            grad_sum=zeros_like(params, self.state_dtype),
            estim_lr=jnp.asarray(self.estim_lr0, float),
            numerator_weighted=jnp.zeros([]),
            count=zero_count(),
        )

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        (b1, b2), b3 = self.betas, self.betas[1] ** 0.5
        t, d = increment(state.count), state.estim_lr
        rate = d * rate_at(self.learning_rate, state.count) * jnp.sqrt(1 - b2**t) / (1 - b1**t)
        gain = total_over_leaves(
            lambda g, s, v: dot(g, s / (safe_sqrt(v) + self.eps)), updates, state.grad_sum, state.exp_avg_sq
        )
        r = b3 * state.numerator_weighted + (1 - b3) * rate * gain

        def leaf(g, m, v, s, w):
            m = b1 * m + (1 - b1) * rate * g
            v = b2 * v + (1 - b2) * abs_sq(g)
            s = b3 * s + (1 - b3) * rate * g
            return -m / (safe_sqrt(v) + self.eps) - rate * self.weight_decay * w, m, v, s

        slots = (state.exp_avg, state.exp_avg_sq, state.grad_sum)
        updates, m, v, s = map_leaves(leaf, updates, *slots, read=(params,), params=params)
        d = jnp.maximum(d, ratio(r, (1 - b3) * total_over_leaves(jnp.abs, s)))
        scalars = {"estim_lr": d, "numerator_weighted": r}
        scalars = {name: cast_like(x, getattr(state, name)) for name, x in scalars.items()}
        return updates, DAdaptAdamWState(m, v, s, count=t, **scalars)
