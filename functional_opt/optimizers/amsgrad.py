"""AMSGrad: Adam with a second moment that never decreases."""

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


class ScaleByAmsgradState(NamedTuple):
    """`count`: steps done. `mu`, `nu`: running means of g and |g|². `nu_max`: the largest second moment so far."""

    count: Counter
    mu: Signed
    nu: Unsigned
    nu_max: Unsigned


@transformation
class scale_by_amsgrad(GradientTransformation):
    """Adam with a second moment that never decreases: v_max ← max(v_max, v̂), u = m̂ / (√(v_max + eps_root) + eps).

    m, v, m̂ and v̂ as in `scale_by_adam`.

    Args:
        b1, b2, eps, eps_root, mu_dtype, eps_hat, state_dtype: as in `scale_by_adam`.
        bias_correction_mu, bias_correction_nu: whether to correct m and v for starting at zero.
        max_before_correction: whether to take the maximum over v and correct it by 1 − b2ᵗ afterwards, as Keras and
            PyTorch do, instead of over v̂.

    Reddi, Kale & Kumar 2018, arXiv:1904.09237.

    >>> tx = scale_by_amsgrad(b1=0.0)
    >>> u, state = tx.update({"w": 4.0}, tx.init({"w": 0.0}))
    >>> u, state = tx.update({"w": 1.0}, state)
    >>> round(u["w"].item(), 3)
    0.25
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    eps_root: NonNegative = 0.0
    mu_dtype: Static[DType | None] = None
    bias_correction_mu: Static[bool] = True
    bias_correction_nu: Static[bool] = True
    max_before_correction: Static[bool] = False
    eps_hat: Static[bool] = False
    state_dtype: Static[DType | None] = None

    def init(self, params):
        mu = zeros_like(params, self.mu_dtype or self.state_dtype)
        nu, nu_max = (zeros_like(params, self.state_dtype, real=True) for _ in range(2))
        return ScaleByAmsgradState(zero_count(), mu, nu, nu_max)

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2
        eps, of_m, before, after = self._corrections(t)

        def leaf(g, m, v, v_max):
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * abs_sq(g)
            v_max = jnp.maximum(v_max, v / before)
            return m / of_m / (jnp.sqrt(v_max / after + self.eps_root) + eps), m, v, v_max

        updates, *moments = map_leaves(leaf, updates, state.mu, state.nu, state.nu_max, params=params)
        return updates, ScaleByAmsgradState(t, *moments)

    def as_kernel(self, state, params):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2
        eps, of_m, before, after = self._corrections(t)
        scalars = kernels.AmsgradScalars(b1, 1 - b1, b2, 1 - b2, of_m, before, after, self.eps_root, eps)
        return (kernels.KernelOp("amsgrad", scalars, (state.mu, state.nu, state.nu_max)),)

    def _corrections(self, t):
        """Returns eps and what m, v and the largest v are divided by."""
        of_v = 1 - self.b2**t
        eps = self.eps / jnp.sqrt(of_v) if self.eps_hat else self.eps
        of_m = 1 - self.b1**t if self.bias_correction_mu else 1.0
        of_v = of_v if self.bias_correction_nu else 1.0
        return eps, of_m, *((1.0, of_v) if self.max_before_correction else (of_v, 1.0))


@checked
def amsgrad(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DType | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """AMSGrad: w ← w − learning_rate · m̂ / (√(max v̂ + eps_root) + eps). See `scale_by_amsgrad`.

    Reddi, Kale & Kumar 2018, arXiv:1904.09237.

    >>> amsgrad(0.1, b2=0.99)
    chain(scale_by_amsgrad(b2=0.99), scale_by_learning_rate(0.1))
    """
    rule = scale_by_amsgrad(
        b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu, state_dtype=state_dtype
    )
    return chain(rule, scale_by_learning_rate(learning_rate))
