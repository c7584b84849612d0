"""AdEMAMix: Adam with a second, slower mean of the gradients. Also its simplified form."""

from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from ..core import kernels
from ..core.checks import Static, checked
from ..core.leaves import map_leaves, zeros_like
from ..core.norms import abs_sq
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative, Range
from ..core.schedule import OrSchedule, Rate, rate_at
from ..core.slots import Counter, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate

DecayRate = Annotated[Any, OrSchedule(Range("[0, 1]"))]
"""A number in [0, 1], a schedule, or a function of the step count."""


class ScaleByAdemamixState(NamedTuple):
    """`count`, `count_m2`: steps done. `m1`, `m2`: the fast and the slow mean of g. `nu`: running mean of |g|²."""

    count: Counter
    count_m2: Counter
    m1: Signed
    m2: Signed
    nu: Unsigned


@transformation
class scale_by_ademamix(GradientTransformation):
    """AdEMAMix's direction: u = (m̂₁ + alpha·m₂) / (√(v̂ + eps_root) + eps).

    m₁ ← b1·m₁ + (1 − b1)·g, m̂₁ = m₁ / (1 − b1ᵗ); m₂ ← b3·m₂ + (1 − b3)·g;
    v ← b2·v + (1 − b2)·|g|², v̂ = v / (1 − b2ᵗ).

    Args:
        b1, b2: decay rates of m₁ and v, in [0, 1).
        b3: decay rate of m₂: a number in [0, 1], a schedule, or a function of the count; in long runs a schedule
            raises it from b1.
        alpha: the weight of m₂: a number ≥ 0, a schedule, or a function of the count; in long runs a schedule raises
            it from 0.
        eps: added outside the root, ≥ 0.
        eps_root: added inside the root, ≥ 0.
        mu_dtype: storage dtype of m₁ and m₂; `state_dtype` if None.
        state_dtype: storage dtype of the means. None means the params' dtype, or float32 for 16-bit params.

    Pagliardini, Ablin & Grangier 2024, arXiv:2409.03137.

    >>> tx = scale_by_ademamix(b3=0.5, alpha=2.0)
    >>> tx.update({"w": jnp.array(3.0)}, tx.init({"w": 0.0}))[0]["w"].round(3).item()
    2.0
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.999
    b3: DecayRate = 0.9999
    alpha: Rate = 6.0
    eps: NonNegative = 1e-8
    eps_root: NonNegative = 0.0
    mu_dtype: Static[DType | None] = None
    state_dtype: Static[DType | None] = None

    def init(self, params):
        m1, m2 = (zeros_like(params, self.mu_dtype or self.state_dtype) for _ in range(2))
        nu = zeros_like(params, self.state_dtype, real=True)
        return ScaleByAdemamixState(zero_count(), zero_count(), m1, m2, nu)

    def update(self, updates, state, params=None, **extra):
        t, b1, b2 = increment(state.count), self.b1, self.b2
        b3, alpha = rate_at(self.b3, state.count_m2), rate_at(self.alpha, state.count_m2)

        def leaf(g, m1, m2, v):
            m1 = b1 * m1 + (1 - b1) * g
            m2 = b3 * m2 + (1 - b3) * g
            v = b2 * v + (1 - b2) * abs_sq(g)
            u = (m1 / (1 - b1**t) + alpha * m2) / (jnp.sqrt(v / (1 - b2**t) + self.eps_root) + self.eps)
            return u, m1, m2, v

        updates, *means = map_leaves(leaf, updates, state.m1, state.m2, state.nu, params=params)
        return updates, ScaleByAdemamixState(t, increment(state.count_m2), *means)

    def as_kernel(self, state, params):
        t, b1, b2 = increment(state.count), self.b1, self.b2
        b3, alpha = rate_at(self.b3, state.count_m2), rate_at(self.alpha, state.count_m2)
        decays, corrections = (b1, 1 - b1, b2, 1 - b2, b3, 1 - b3), (1 - b1**t, 1 - b2**t)
        scalars = kernels.AdemamixScalars(*decays, alpha, *corrections, self.eps_root, self.eps)
        return (kernels.KernelOp("ademamix", scalars, (state.m1, state.m2, state.nu)),)


@checked
def ademamix(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    b3: DecayRate = 0.9999,
    alpha: Rate = 5.0,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DType | None = None,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """AdEMAMix: w ← w − learning_rate · ((m̂₁ + alpha·m₂) / (√v̂ + eps) + weight_decay · w).

    See `scale_by_ademamix` for the terms and arguments, `add_decayed_weights` for weight_decay and mask.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.

    Pagliardini, Ablin & Grangier 2024, arXiv:2409.03137.

    >>> ademamix(1e-3)
    chain(scale_by_ademamix(alpha=5.0), add_decayed_weights(), scale_by_learning_rate(0.001))
    """
    rule = scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root, mu_dtype, state_dtype)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))


class ScaleBySimplifiedAdEMAMixState(NamedTuple):
    """`t`: steps done. `m`: decayed running sum of g. `n`: running mean of |g|²."""

    t: Counter
    m: Signed
    n: Unsigned


@transformation
class scale_by_simplified_ademamix(GradientTransformation):
    """Simplified AdEMAMix's direction: u = (m + alpha·g) / (√(v̂ + eps_root) + eps).

    m ← b1·m + g, a sum, not a mean; v ← b2·v + (1 − b2)·|g|², v̂ = v / (1 − b2ᵗ).

    Args:
        b1, b2: decay rates of m and v, in [0, 1).
        alpha: the weight of the current gradient: a number ≥ 0, a schedule, or a function of the count.
        eps: added outside the root, ≥ 0.
        eps_root: added inside the root, ≥ 0.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params.

    Morwani, Vyas, Zhang & Kakade 2025, arXiv:2502.02431.

    >>> tx = scale_by_simplified_ademamix(alpha=2.0)
    >>> round(tx.update({"w": jnp.array(5.0)}, tx.init({"w": 0.0}))[0]["w"].item(), 3)
    3.0
    """

    preconditions = True
    b1: Decay = 0.99
    b2: Decay = 0.95
    alpha: Rate = 0.0
    eps: NonNegative = 1e-8
    eps_root: NonNegative = 0.0
    state_dtype: Static[DType | None] = None

    def init(self, params):
        m, n = zeros_like(params, self.state_dtype), zeros_like(params, self.state_dtype, real=True)
        return ScaleBySimplifiedAdEMAMixState(zero_count(), m, n)

    def update(self, updates, state, params=None, **extra):
        t, alpha = increment(state.t), rate_at(self.alpha, state.t)

        def leaf(g, m, v):
            m = self.b1 * m + g
            v = self.b2 * v + (1 - self.b2) * abs_sq(g)
            return (m + alpha * g) / (jnp.sqrt(v / (1 - self.b2**t) + self.eps_root) + self.eps), m, v

        updates, m, n = map_leaves(leaf, updates, state.m, state.n, params=params)
        return updates, ScaleBySimplifiedAdEMAMixState(t, m, n)

    def as_kernel(self, state, params):
        t, b2 = increment(state.t), self.b2
        weights = 1.0, rate_at(self.alpha, state.t)  # of m, a sum, and of g
        scalars = kernels.AdamScalars(self.b1, 1.0, b2, 1 - b2, *weights, 1 - b2**t, self.eps_root, self.eps)
        return (kernels.KernelOp("nadam", scalars, (state.m, state.n)),)


@checked
def simplified_ademamix(
    learning_rate: Rate,
    b1: Decay = 0.99,
    b2: Decay = 0.95,
    alpha: Rate = 0.0,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """Simplified AdEMAMix: w ← w − learning_rate · ((m + alpha·g) / (√v̂ + eps) + weight_decay · w).

    See `scale_by_simplified_ademamix` for the terms and arguments, `add_decayed_weights` for weight_decay and mask.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count. Use 1 − b1 times Adam's, because
            m is a sum.

    Morwani, Vyas, Zhang & Kakade 2025, arXiv:2502.02431.

    >>> simplified_ademamix(1e-5)
    chain(scale_by_simplified_ademamix(), add_decayed_weights(), scale_by_learning_rate(1e-05))
    """
    rule = scale_by_simplified_ademamix(b1, b2, alpha, eps, eps_root, state_dtype)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
