"""Mechanic: a wrapper that learns a factor on an optimizer's learning rate."""

from typing import NamedTuple

import jax.numpy as jnp

from ..core.checks import Static
from ..core.leaves import cast_like, check_leaves, copy_of, map_leaves, widen_params, widen_tree, zeros_like
from ..core.model_trees import matching
from ..core.norms import abs_sq, global_norm, safe_sqrt
from ..core.ranges import DType, NonNegative, Positive, PositiveInt
from ..core.slots import Counter, Number, Params, States
from ..core.transformation import (
    GradientTransformation,
    Transformation,
    increment,
    needs_params,
    transformation,
    zero_count,
)
from .distance import dot, largest_size, total_over_leaves


class MechanicState(NamedTuple):
    """`base_optimizer_state`: the inner state. `count`: steps done. `r`, `m`, `v`, `s`: one number per β.

    `x0`: the first params. `delta`: Δ, the sum of the inner updates.
    """

    base_optimizer_state: States
    count: Counter
    r: Number
    m: Number
    v: Number
    s: Number
    x0: Params
    delta: Params


@transformation
class mechanize(GradientTransformation):
    """Mechanic: w = w₀ + S·Δ, Δ the sum of an optimizer's updates and S = Σs a learned factor.

    With h = ⟨Δ, g + weight_decay·S·‖g‖·w / (‖w‖ + eps)⟩, for β = 1 − 10⁻¹ … 1 − 10⁻ⁿ, n = num_betas:
    r ← β·r − s·min(max(h, −m), m), m ← max(β·m, |h| + eps), v ← β²·v + h²,
    s ← (s_init·m / n + max(r, 0)) / (√v + eps).

    Args:
        base_optimizer: a gradient transformation with a learning rate or a schedule. Only the schedule's shape
            matters, not its scale.
        weight_decay: ≥ 0.
        eps: > 0.
        s_init: initial S, > 0.
        num_betas: number of β's, ≥ 1.
        state_dtype: storage dtype of w₀ and Δ. None means the params' dtype, or float32 for 16-bit params.

    Raises ValueError without params.

    Cutkosky, Defazio & Mehta 2023, arXiv:2306.00144.

    >>> from functional_opt import sgd
    >>> tx, w = mechanize(sgd(0.1)), jnp.array(3.0)
    >>> u, state = tx.update(jnp.array(2.0), tx.init(w), w)
    >>> f"{u:.1e} {state.delta:.1f}"
    '-2.0e-07 -0.2'

    Differs from Optax: Δ is kept in the state. Optax computes it as (w − w₀) / (S + eps), which loses all digits in
    float32 as long as S is small.
    """

    base_optimizer: Transformation
    weight_decay: NonNegative = 0.01
    eps: Positive = 1e-8
    s_init: Positive = 1e-6
    num_betas: Static[PositiveInt] = 6
    state_dtype: Static[DType | None] = None

    def init(self, params):
        return MechanicState(
            base_optimizer_state=self.base_optimizer.init(params),
            count=zero_count(),
            r=jnp.zeros(self.num_betas),
            m=jnp.zeros(self.num_betas),
            v=jnp.zeros(self.num_betas),
            s=jnp.full(self.num_betas, self.s_init, float),
            x0=copy_of(params, self.state_dtype),
            delta=zeros_like(params, self.state_dtype),
        )

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        params = matching(params, state.x0)
        check_leaves(updates, params)
        wide, wide_params = widen_tree(updates, "updates"), widen_params(params)
        moves, inner = self.base_optimizer.update(wide, state.base_optimizer_state, wide_params, **extra)

        size, most = (
            largest_size(updates, updates),
            float(jnp.finfo(state.s.dtype).max) ** 0.5 / 1000,
        )  # sums of h² stay finite
        norm = size * safe_sqrt(total_over_leaves(lambda g: abs_sq(g / size), updates))
        decay = self.weight_decay * jnp.sum(state.s) * norm / (global_norm(params) + self.eps)

        def gain(g, delta, w):
            return jnp.clip(dot(delta, g + decay * w), -most, most)

        h = jnp.clip(total_over_leaves(gain, updates, state.delta, params), -most, most)
        beta = 1 - 0.1 ** jnp.arange(1.0, self.num_betas + 1)
        r = beta * state.r - state.s * jnp.clip(h, -state.m, state.m)
        m = jnp.maximum(beta * state.m, jnp.abs(h) + self.eps)
        v = beta**2 * state.v + h**2
        s = (self.s_init * m / self.num_betas + jnp.maximum(r, 0.0)) / (safe_sqrt(v) + self.eps)
        factor = jnp.sum(s)

        def leaf(u, delta, w, x0):
            delta = delta + u
            return x0 - w + factor * delta, delta

        updates, delta = map_leaves(leaf, moves, state.delta, read=(params, state.x0), params=params)
        r, m, v, s = (cast_like(x, state.s) for x in (r, m, v, s))
        return updates, MechanicState(inner, increment(state.count), r, m, v, s, state.x0, delta)
