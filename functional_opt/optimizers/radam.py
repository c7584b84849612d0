"""RAdam: Adam that uses momentum alone until the variance of its second moment can be computed."""

import dataclasses
from typing import Annotated

import jax.numpy as jnp

from ..core import kernels
from ..core.checks import Static, checked
from ..core.leaves import map_leaves, zeros_like
from ..core.norms import abs_sq
from ..core.ranges import Decay, DType, NonNegative, Range, Scalar
from ..core.schedule import Rate
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..transforms.combining.chain import chain
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from .adam import ScaleByAdamState, mean_weights

Threshold = Annotated[Scalar, Range("[4, inf]")]


@transformation
class scale_by_radam(GradientTransformation):
    """RAdam's direction: u = r·m̂ / (√(v̂ + eps_root) + eps) where ρ ≥ threshold, else u = m̂.

    m̂ and v̂ as in `scale_by_adam`; ρ = ρ∞ − 2t·b2ᵗ / (1 − b2ᵗ), ρ∞ = 2 / (1 − b2) − 1, and
    r = √((ρ − 4)(ρ − 2)ρ∞ / ((ρ∞ − 4)(ρ∞ − 2)ρ)).

    Args:
        b1, b2, eps, eps_root, nesterov, eps_hat, state_dtype: as in `scale_by_adam`. torch's RAdam has eps_hat.
        threshold: least ρ at which the step is adaptive, ≥ 4; at first ρ is about t.

    Liu et al. 2019, arXiv:1908.03265.

    >>> tx = scale_by_radam()
    >>> u, state = tx.update({"w": jnp.array([2.0, -0.1])}, tx.init({"w": jnp.zeros(2)}))
    >>> [round(x, 3) for x in u["w"].tolist()]
    [2.0, -0.1]

    Differs from Optax: ρ, a small difference of large numbers, stays accurate in float32.
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    eps_root: NonNegative = 0.0
    threshold: Threshold = 5.0
    nesterov: Static[bool] = False
    state_dtype: Static[DType | None] = None
    eps_hat: Static[bool] = dataclasses.field(default=False, kw_only=True)

    def init(self, params):
        mu, nu = zeros_like(params, self.state_dtype), zeros_like(params, self.state_dtype, real=True)
        return ScaleByAdamState(zero_count(), mu, nu)

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2
        adaptive, r = self._rectified(t)
        eps = self.eps / jnp.sqrt(1 - b2**t) if self.eps_hat else self.eps

        def leaf(g, m, v):
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * abs_sq(g)
            if self.nesterov:
                m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
            else:
                m_hat = m / (1 - b1**t)
            root = jnp.sqrt(v / (1 - b2**t) + self.eps_root) + eps
            return m_hat * jnp.where(adaptive, r, 1.0) / jnp.where(adaptive, root, 1.0), m, v

        updates, mu, nu = map_leaves(leaf, updates, state.mu, state.nu, params=params)
        return updates, ScaleByAdamState(t, mu, nu)

    def as_kernel(self, state, params):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2
        eps = self.eps / jnp.sqrt(1 - b2**t) if self.eps_hat else self.eps
        weights = mean_weights(b1, t, self.nesterov)
        adam = kernels.AdamScalars(b1, 1 - b1, b2, 1 - b2, *weights, 1 - b2**t, self.eps_root, eps)
        return (kernels.KernelOp("radam", (*adam, *self._rectified(t)), (state.mu, state.nu)),)

    def _rectified(self, t):
        """Returns whether the step is adaptive, and r. All terms share one rounded b2, so its error cancels in ρ."""
        b2 = jnp.asarray(self.b2, float)
        limit = (1 + b2) / (1 - b2)
        rho = limit - 2 * t / jnp.expm1(-t * jnp.log1p(b2 - 1))
        adaptive = rho >= self.threshold
        rho, limit = jnp.where(adaptive, rho, 5.0), jnp.where(adaptive, limit, 5.0)
        return adaptive, jnp.sqrt((rho - 4) / (limit - 4) * ((rho - 2) / (limit - 2)) * (limit / rho))


@checked
def radam(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    threshold: Threshold = 5.0,
    *,
    nesterov: bool = False,
    eps_hat: bool = False,
    state_dtype: DType | None = None,
) -> chain:
    """Rectified Adam: w ← w − learning_rate · u, with momentum alone for the first steps. See `scale_by_radam`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.

    Liu et al. 2019, arXiv:1908.03265.

    >>> radam(1e-3)
    chain(scale_by_radam(), scale_by_learning_rate(0.001))
    """
    rule = scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov, state_dtype, eps_hat=eps_hat)
    return chain(rule, scale_by_learning_rate(learning_rate))
