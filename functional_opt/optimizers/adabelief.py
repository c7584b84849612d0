"""AdaBelief: Adam with the second moment of the gradient's distance from its mean."""

from typing import NamedTuple

import jax.numpy as jnp

from ..core import kernels
from ..core.checks import Static, checked
from ..core.leaves import map_leaves, zeros_like
from ..core.norms import abs_sq
from ..core.ranges import Decay, DType, NonNegative
from ..core.schedule import Rate
from ..core.slots import Counter, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..transforms.combining.chain import chain
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from .adam import mean_weights


class ScaleByBeliefState(NamedTuple):
    """`count`: steps done. `mu`: running mean of g. `nu`: that of |g − mu|², plus eps_root at every step."""

    count: Counter
    mu: Signed
    nu: Unsigned


@transformation
class scale_by_belief(GradientTransformation):
    """AdaBelief's direction: u = m̂ / (√ŝ + eps).

    m ← b1·m + (1 − b1)·g; s ← b2·s + (1 − b2)·|g − m|² + eps_root. The bias correction of m̂ and ŝ, and nesterov, are
    as in `scale_by_adam`.

    Args:
        b1, b2: decay rates of the two means, in [0, 1).
        eps: added outside the root, ≥ 0.
        eps_root: added to s at every step, so that it accumulates in s, ≥ 0.
        nesterov: whether m̂ looks one step ahead.
        state_dtype: storage dtype of m and s. None means the params' dtype, or float32 for 16-bit params.

    Zhuang et al. 2020, arXiv:2010.07468.

    >>> tx = scale_by_belief()
    >>> u, state = tx.update({"w": jnp.array([2.0, -0.1])}, tx.init({"w": jnp.zeros(2)}))
    >>> [round(x, 3) for x in u["w"].tolist()]
    [1.111, -1.111]
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-16
    eps_root: NonNegative = 1e-16
    nesterov: Static[bool] = False
    state_dtype: Static[DType | None] = None

    def init(self, params):
        mu, nu = zeros_like(params, self.state_dtype), zeros_like(params, self.state_dtype, real=True)
        return ScaleByBeliefState(zero_count(), mu, nu)

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2

        def leaf(g, m, s):
            m = b1 * m + (1 - b1) * g
            s = b2 * s + (1 - b2) * abs_sq(g - m) + self.eps_root
            if self.nesterov:
                m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
            else:
                m_hat = m / (1 - b1**t)
            return m_hat / (jnp.sqrt(s / (1 - b2**t)) + self.eps), m, s

        updates, mu, nu = map_leaves(leaf, updates, state.mu, state.nu, params=params)
        return updates, ScaleByBeliefState(t, mu, nu)

    def as_kernel(self, state, params):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2
        weights = mean_weights(b1, t, self.nesterov)
        scalars = kernels.AdamScalars(b1, 1 - b1, b2, 1 - b2, *weights, 1 - b2**t, self.eps_root, self.eps)
        return (kernels.KernelOp("belief", scalars, (state.mu, state.nu)),)


@checked
def adabelief(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-16,
    eps_root: NonNegative = 1e-16,
    *,
    nesterov: bool = False,
    state_dtype: DType | None = None,
) -> chain:
    """AdaBelief: w ← w − learning_rate · m̂ / (√ŝ + eps), s the running mean of |g − m|². See `scale_by_belief`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 1e-3 is usual.

    Zhuang et al. 2020, arXiv:2010.07468.

    >>> adabelief(1e-3)
    chain(scale_by_belief(), scale_by_learning_rate(0.001))
    """
    rule = scale_by_belief(b1, b2, eps, eps_root, nesterov, state_dtype)
    return chain(rule, scale_by_learning_rate(learning_rate))
