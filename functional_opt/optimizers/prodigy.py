"""Prodigy: Adam that estimates its own learning rate."""

from typing import NamedTuple

import jax.numpy as jnp

from ..core.checks import Static
from ..core.leaves import cast_like, copy_of, map_leaves, zeros_like
from ..core.norms import abs_sq, safe_sqrt
from ..core.ranges import Decay, DType, NonNegative, Positive
from ..core.schedule import Rate, rate_at
from ..core.slots import Counter, Number, Params, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, needs_params, transformation, zero_count
from .distance import Betas, dot, ratio, safe_divide, total_over_leaves


class ProdigyState(NamedTuple):
    """`exp_avg`, `exp_avg_sq`: running means of d·g and d²·|g|². `grad_sum`: s. `params0`: the first params.

    `estim_lr`: d, the estimate of the distance to the solution. `numerator_weighted`: r. `count`: steps done.
    """

    exp_avg: Signed
    exp_avg_sq: Unsigned
    grad_sum: Signed
    params0: Params
    estim_lr: Number
    numerator_weighted: Number
    count: Counter


@transformation
class prodigy(GradientTransformation):
    """Prodigy: w ← w − γ·(m / (√v + d·eps) + weight_decay·w), γ = learning_rate · d · √(1 − β2ᵗ) / (1 − β1ᵗ).

    m ← β1·m + (1 − β1)·d·g; v ← β2·v + (1 − β2)·d²·|g|². d starts at estim_lr0 and is the largest estim_lr_coef · r /
    ‖s‖₁ so far, with r ← β3·r + (d / estim_lr0)·γ·⟨g, w₀ − w⟩ and s ← β3·s + (d / estim_lr0)·γ·g.

    Args:
        learning_rate: a factor on d: a number ≥ 0, a schedule, or a function of the count; 1.0 is the intended value.
        betas: decay rates of m and v, each in [0, 1).
        beta3: decay rate of r and s, in [0, 1); √β2 if None.
        eps: added outside the root, times d, ≥ 0.
        estim_lr0: initial d, > 0. A value that is too small is safe; one that is too large is not.
        estim_lr_coef: a factor on the estimate, > 0. Tune this argument first.
        weight_decay: decoupled weight decay, ≥ 0.
        safeguard_warmup: whether s uses d instead of γ, so that a warm-up does not make the estimate too large.
        state_dtype: storage dtype of m, v and s. None means the params' dtype, or float32 for 16-bit params; w₀
            always has that dtype.

    Raises ValueError without params.

    The first steps are about estim_lr0 long. 16-bit params round them away, and then d does not grow: wrap the
    optimizer in `master_weights`.

    Mishchenko & Defazio 2023, arXiv:2306.06101.

    >>> tx, w = prodigy(), jnp.array(1.0)
    >>> u, state = tx.update(jnp.array(2.0), tx.init(w), w)
    >>> f"{u:.1e} {state.estim_lr:.1e}"
    '-1.0e-06 1.0e-06'

    Differs from Optax: a first gradient of zero gives an update of zero, not NaN.
    """

    learning_rate: Rate = 1.0
    betas: Betas = (0.9, 0.999)
    beta3: Decay | None = None
    eps: NonNegative = 1e-8
    estim_lr0: Positive = 1e-6
    estim_lr_coef: Positive = 1.0
    weight_decay: NonNegative = 0.0
    safeguard_warmup: Static[bool] = False
    state_dtype: Static[DType | None] = None

    def init(self, params):
        return ProdigyState(
            exp_avg=zeros_like(params, self.state_dtype),
            exp_avg_sq=zeros_like(params, self.state_dtype, real=True),
            grad_sum=zeros_like(params, self.state_dtype),
            params0=copy_of(params),
            estim_lr=jnp.asarray(self.estim_lr0, float),
            numerator_weighted=jnp.zeros([]),
            count=zero_count(),
        )

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        (b1, b2), b3 = self.betas, self.betas[1] ** 0.5 if self.beta3 is None else self.beta3
        t, d = increment(state.count), state.estim_lr
        rate = d * rate_at(self.learning_rate, state.count) * jnp.sqrt(1 - b2**t) / (1 - b1**t)
        weight = d / self.estim_lr0
        gain = total_over_leaves(lambda g, w0, w: dot(g, w0 - w), updates, state.params0, params)
        r = b3 * state.numerator_weighted + weight * rate * gain

        def moments(g, m, v, s):
            m = b1 * m + (1 - b1) * d * g
            v = b2 * v + (1 - b2) * d**2 * abs_sq(g)
            return g, m, v, b3 * s + weight * (d if self.safeguard_warmup else rate) * g

        slots = (state.exp_avg, state.exp_avg_sq, state.grad_sum)
        updates, m, v, s = map_leaves(moments, updates, *slots)
        d = jnp.maximum(d, self.estim_lr_coef * ratio(r, total_over_leaves(jnp.abs, s)))

        def leaf(g, m, v, w):
            return -rate * (safe_divide(m, safe_sqrt(v) + d * self.eps) + self.weight_decay * w)

        updates = map_leaves(leaf, updates, read=(m, v, params), params=params)
        scalars = {"estim_lr": d, "numerator_weighted": r}
        scalars = {name: cast_like(x, getattr(state, name)) for name, x in scalars.items()}
        return updates, ProdigyState(m, v, s, state.params0, count=t, **scalars)
