"""Adam, and AdamW: Adam with decoupled weight decay."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from ..core import kernels
from ..core.checks import Static, checked
from ..core.leaves import map_leaves, zeros_like
from ..core.norms import abs_sq
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative
from ..core.schedule import Rate
from ..core.slots import Counter, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate


class ScaleByAdamState(NamedTuple):
    """`count`: steps done. `mu`, `nu`: running means of g and |g|²."""

    count: Counter
    mu: Signed
    nu: Unsigned


@transformation
class scale_by_adam(GradientTransformation):
    """Adam's direction: u = m̂ / (√(v̂ + eps_root) + eps).

    m ← b1·m + (1 − b1)·g, m̂ = m / (1 − b1ᵗ); v ← b2·v + (1 − b2)·|g|², v̂ = v / (1 − b2ᵗ). With nesterov
    m̂ = b1·m / (1 − b1ᵗ⁺¹) + (1 − b1)·g / (1 − b1ᵗ).

    Args:
        b1, b2: decay rates of the two means, in [0, 1).
        eps: added outside the root, ≥ 0.
        eps_root: added inside the root, ≥ 0; a positive value makes the step differentiable at g = 0.
        mu_dtype: storage dtype of m; `state_dtype` if None.
        nesterov: whether m̂ looks one step ahead.
        eps_hat: whether eps is added before v's bias correction, √v + eps. This is Kingma & Ba's ε̂, which Keras and
            TensorFlow call epsilon. It is equivalent to dividing eps by √(1 − b2ᵗ).
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params.

    Kingma & Ba 2014, arXiv:1412.6980; Dozat 2016 for nesterov.

    >>> tx = scale_by_adam()
    >>> u, state = tx.update({"w": jnp.array([2.0, -0.1])}, tx.init({"w": jnp.zeros(2)}))
    >>> u["w"].round(3).tolist()
    [1.0, -1.0]

    Differs from Optax in `eps_hat` and `state_dtype`, and in storing float32 for 16-bit params.
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    eps_root: NonNegative = 0.0
    mu_dtype: Static[DType | None] = None
    nesterov: Static[bool] = False
    eps_hat: Static[bool] = False
    state_dtype: Static[DType | None] = None

    def init(self, params):
        mu = zeros_like(params, self.mu_dtype or self.state_dtype)
        return ScaleByAdamState(zero_count(), mu, zeros_like(params, self.state_dtype, real=True))

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2
        of_m, of_v = 1 - b1**t, 1 - b2**t
        eps = self.eps / jnp.sqrt(of_v) if self.eps_hat else self.eps

        def leaf(g, m, v):
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * abs_sq(g)
            if self.nesterov:
                m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / of_m
            else:
                m_hat = m / of_m
            return m_hat / (jnp.sqrt(v / of_v + self.eps_root) + eps), m, v

        updates, mu, nu = map_leaves(leaf, updates, state.mu, state.nu, params=params)
        return updates, ScaleByAdamState(t, mu, nu)

    def as_kernel(self, state, params):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2
        eps = self.eps / jnp.sqrt(1 - b2**t) if self.eps_hat else self.eps
        weights = mean_weights(b1, t, self.nesterov)
        scalars = kernels.AdamScalars(b1, 1 - b1, b2, 1 - b2, *weights, 1 - b2**t, self.eps_root, eps)
        return (kernels.KernelOp("nadam" if self.nesterov else "adam", scalars, (state.mu, state.nu)),)


def mean_weights(b1: Any, t: Any, nesterov: bool = False) -> tuple[Any, Any]:
    """Returns the weights of m and of g in m̂, for kernels."""
    by1 = 1 / (1 - b1**t)
    return (b1 * (1 / (1 - b1 ** (t + 1))), (1 - b1) * by1) if nesterov else (by1, 0.0)


@checked
def adam(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DType | None = None,
    *,
    nesterov: bool = False,
    eps_hat: bool = False,
    state_dtype: DType | None = None,
) -> chain:
    """Adam: w ← w − learning_rate · m̂ / (√(v̂ + eps_root) + eps). See `scale_by_adam` for the terms and arguments.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 1e-3 is usual.

    Kingma & Ba 2014, arXiv:1412.6980.

    >>> tx = adam(0.1)
    >>> tx
    chain(scale_by_adam(), scale_by_learning_rate(0.1))
    >>> u, state = tx.update({"w": 3.0}, tx.init({"w": 0.0}))
    >>> round(u["w"].item(), 3)
    -0.1
    """
    rule = scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov, eps_hat, state_dtype)
    return chain(rule, scale_by_learning_rate(learning_rate))


@checked
def adamw(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DType | None = None,
    weight_decay: Rate = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
    eps_hat: bool = False,
    state_dtype: DType | None = None,
) -> chain:
    """Adam with decoupled decay: w ← w − learning_rate · (m̂ / (√v̂ + eps) + weight_decay · w).

    See `scale_by_adam` and `add_decayed_weights` for the arguments; `mask` selects the leaves that decay.

    Loshchilov & Hutter 2017, arXiv:1711.05101.

    >>> adamw(1e-3, weight_decay=0.1, mask={"*/bias": False})
    chain(scale_by_adam(), add_decayed_weights(weight_decay=0.1, mask=PathRules({'*/bias': False})), \
scale_by_learning_rate(0.001))
    """
    rule = scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov, eps_hat, state_dtype)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
