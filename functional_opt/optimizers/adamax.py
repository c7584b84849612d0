"""Adamax: Adam with a running maximum of |g| in place of the second moment."""

import jax.numpy as jnp

from ..core import kernels
from ..core.checks import Static, checked
from ..core.leaves import map_leaves, zeros_like
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative
from ..core.schedule import Rate
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from .adam import ScaleByAdamState


@transformation
class scale_by_adamax(GradientTransformation):
    """Adamax's direction: m ← b1·m + (1 − b1)·g; v ← max(b2·v, |g| + eps); u = m / (1 − b1ᵗ) / v.

    Args:
        b1: decay rate of the mean, in [0, 1).
        b2: decay rate of the maximum, in [0, 1).
        eps: added inside the maximum, ≥ 0. With `eps_in_max=False` it is added outside, as in Keras:
            v ← max(b2·v, |g|), and m̂ is divided by v + eps.
        eps_in_max: whether eps is added inside the maximum.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params.

    Kingma & Ba 2014, arXiv:1412.6980, section 7.1.

    >>> tx = scale_by_adamax()
    >>> u, state = tx.update({"w": jnp.array([2.0, -0.1])}, tx.init({"w": jnp.zeros(2)}))
    >>> u["w"].round(3).tolist(), state.nu["w"].round(3).tolist()
    ([1.0, -1.0], [2.0, 0.10000000149011612])
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    eps_in_max: Static[bool] = True
    state_dtype: Static[DType | None] = None

    def init(self, params):
        mu, nu = zeros_like(params, self.state_dtype), zeros_like(params, self.state_dtype, real=True)
        return ScaleByAdamState(zero_count(), mu, nu)

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        inside, outside = (self.eps, 0.0) if self.eps_in_max else (0.0, self.eps)

        def leaf(g, m, v):
            m = self.b1 * m + (1 - self.b1) * g
            v = jnp.maximum(self.b2 * v, jnp.abs(g) + inside)
            return m / (1 - self.b1**t) / (v + outside), m, v

        updates, mu, nu = map_leaves(leaf, updates, state.mu, state.nu, params=params)
        return updates, ScaleByAdamState(t, mu, nu)

    def as_kernel(self, state, params):
        b1 = self.b1
        around = (self.eps, 0.0) if self.eps_in_max else (0.0, self.eps)
        scalars = kernels.AdamaxScalars(b1, 1 - b1, self.b2, 1 - b1 ** increment(state.count), *around)
        return (kernels.KernelOp("adamax", scalars, (state.mu, state.nu)),)


@checked
def adamax(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    *,
    eps_in_max: bool = True,
    state_dtype: DType | None = None,
) -> chain:
    """Adamax: w ← w − learning_rate · m̂ / v, v a running maximum of |g|. See `scale_by_adamax`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 2e-3 is usual.

    Kingma & Ba 2014, arXiv:1412.6980, section 7.1.

    >>> adamax(0.002)
    chain(scale_by_adamax(), scale_by_learning_rate(0.002))
    """
    return chain(scale_by_adamax(b1, b2, eps, eps_in_max, state_dtype), scale_by_learning_rate(learning_rate))


@checked
def adamaxw(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 1e-4,
    mask: Mask | None = None,
    *,
    eps_in_max: bool = True,
    state_dtype: DType | None = None,
) -> chain:
    """Adamax with decoupled decay: w ← w − learning_rate · (m̂ / v + weight_decay · w).

    See `scale_by_adamax` and `add_decayed_weights` for the arguments; `mask` selects the leaves that decay.

    Kingma & Ba 2014, arXiv:1412.6980; Loshchilov & Hutter 2017, arXiv:1711.05101.

    >>> adamaxw(0.002)
    chain(scale_by_adamax(), add_decayed_weights(weight_decay=0.0001), scale_by_learning_rate(0.002))
    """
    rule = scale_by_adamax(b1, b2, eps, eps_in_max, state_dtype)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
