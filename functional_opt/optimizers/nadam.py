"""Nadam: Adam with Nesterov momentum, constant or with Dozat's momentum schedule."""

from typing import NamedTuple

import jax.numpy as jnp

from ..core import kernels
from ..core.checks import Static, checked
from ..core.leaves import map_leaves, zeros_like
from ..core.norms import abs_sq
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative
from ..core.schedule import Rate
from ..core.slots import Counter, Number, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..transforms.combining.chain import chain
from .adam import adam, adamw


class ScaleByNadamState(NamedTuple):
    """`count`: steps done. `mu`, `nu`: running means of g and |g|². `momentum_product`: ∏μᵢ over the steps."""

    count: Counter
    mu: Signed
    nu: Unsigned
    momentum_product: Number


@transformation
class scale_by_nadam(GradientTransformation):
    """Nadam's direction with a momentum warm-up: μₜ = b1·(1 − 0.96^(schedule_decay·t) / 2).

    m ← b1·m + (1 − b1)·g; v ← b2·v + (1 − b2)·|g|², v̂ = v / (1 − b2ᵗ);
    u = (μₜ₊₁·m / (1 − ∏ᵢ₌₁ᵗ⁺¹μᵢ) + (1 − μₜ)·g / (1 − ∏ᵢ₌₁ᵗμᵢ)) / (√v̂ + eps).

    Args:
        b1: decay rate of the first mean, and the limit of μ, in [0, 1).
        b2: decay rate of the second mean, in [0, 1).
        eps: added outside the root, ≥ 0.
        schedule_decay: how fast μ rises from b1/2 to b1, ≥ 0. The paper and tf.keras use 1/250, Keras 3 uses 1.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params.

    Dozat 2016, Incorporating Nesterov Momentum into Adam, ICLR workshop.

    >>> tx = scale_by_nadam()
    >>> u, state = tx.update({"w": jnp.array([2.0, -0.1])}, tx.init({"w": jnp.zeros(2)}))
    >>> u["w"].round(3), round(state.momentum_product.item(), 3)
    (Array([ 1.056, -1.056], dtype=float32), 0.45)

    Differs from `scale_by_adam(nesterov=True)`, which is Optax's Nadam and has μ = b1 at every step.
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-7
    schedule_decay: NonNegative = 0.004
    state_dtype: Static[DType | None] = None

    def init(self, params):
        mu, nu = zeros_like(params, self.state_dtype), zeros_like(params, self.state_dtype, real=True)
        return ScaleByNadamState(zero_count(), mu, nu, jnp.ones([]))

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        u, u_next, product = self._momenta(t, state)

        def leaf(g, m, v):
            m = self.b1 * m + (1 - self.b1) * g
            v = self.b2 * v + (1 - self.b2) * abs_sq(g)
            ahead = u_next * m / (1 - product * u_next) + (1 - u) * g / (1 - product)
            return ahead / (jnp.sqrt(v / (1 - self.b2**t)) + self.eps), m, v

        updates, mu, nu = map_leaves(leaf, updates, state.mu, state.nu, params=params)
        return updates, ScaleByNadamState(t, mu, nu, product)

    def as_kernel(self, state, params):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2
        u, u_next, product = self._momenta(t, state)
        weights = u_next / (1 - product * u_next), (1 - u) / (1 - product)
        scalars = kernels.AdamScalars(b1, 1 - b1, b2, 1 - b2, *weights, 1 - b2**t, 0.0, self.eps)
        return (kernels.KernelOp("nadam", scalars, (state.mu, state.nu)),)

    def _momenta(self, t, state):
        """Returns the momentum of this step and of the next one, and the product of all until now."""
        u, u_next = (self.b1 * (1 - 0.5 * 0.96 ** (self.schedule_decay * s)) for s in (t, t + 1.0))
        return u, u_next, state.momentum_product * u


@checked
def nadam(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DType | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """Adam with Nesterov's momentum. See `adam` for the arguments, and `scale_by_nadam` for Dozat's schedule.

    Dozat 2016, Incorporating Nesterov Momentum into Adam, ICLR workshop.

    >>> nadam(1e-3)
    chain(scale_by_adam(nesterov=True), scale_by_learning_rate(0.001))
    """
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=True, state_dtype=state_dtype)


@checked
def nadamw(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DType | None = None,
    weight_decay: Rate = 1e-4,
    mask: Mask | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """`nadam` with decoupled weight decay. See `adamw` for the arguments.

    Dozat 2016; Loshchilov & Hutter 2017, arXiv:1711.05101.

    >>> nadamw(1e-3)
    chain(scale_by_adam(nesterov=True), add_decayed_weights(weight_decay=0.0001), scale_by_learning_rate(0.001))
    """
    return adamw(
        learning_rate,
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        weight_decay,
        mask,
        nesterov=True,
        state_dtype=state_dtype,
    )
