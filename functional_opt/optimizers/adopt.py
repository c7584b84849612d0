"""ADOPT: Adam that converges with any b2."""

import jax
import jax.numpy as jnp

from ..core import kernels
from ..core.checks import Static, checked
from ..core.leaves import map_leaves, zeros_like
from ..core.norms import abs_sq
from ..core.ranges import Decay, DType, Positive
from ..core.schedule import Rate, as_schedule, rate_at
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..transforms.combining.chain import chain
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from .adam import ScaleByAdamState


def _fourth_root(count: jax.Array) -> jax.Array:
    """Returns count^¼, the bound on the normalized gradient."""
    return count**0.25


@transformation
class scale_by_adopt(GradientTransformation):
    """ADOPT's direction: u = m, m ← b1·m + (1 − b1)·clip(g / max(√v, eps), ±t^¼), v from the previous step.

    Then v ← b2·v + (1 − b2)·|g|². The first step, t = 0, only sets v to |g|² and returns zeros. With nesterov,
    u = b1·m + (1 − b1)·clip(…) with the new m.

    Args:
        b1, b2: decay rates of m and of v, in [0, 1).
        eps: smallest divisor, > 0.
        mu_dtype: storage dtype of m; `state_dtype` if None.
        nesterov: whether to look one step ahead.
        use_clipping: whether to clip g / √v, or its modulus if g is complex.
        clip_value_fn: the bound, ≥ 0: a function of t, a schedule, or a number.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params.

    Taniguchi et al. 2024, arXiv:2411.02853.

    >>> tx = scale_by_adopt(b1=0.5)
    >>> u, state = tx.update({"w": jnp.array(2.0)}, tx.init({"w": 0.0}))
    >>> u["w"].item(), tx.update({"w": jnp.array(1.0)}, state)[0]["w"].item()
    (0.0, 0.25)
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.9999
    eps: Positive = 1e-6
    mu_dtype: Static[DType | None] = None
    nesterov: Static[bool] = False
    use_clipping: Static[bool] = True
    clip_value_fn: Rate = as_schedule("clip_value_fn", _fourth_root)
    state_dtype: Static[DType | None] = None

    def init(self, params):
        mu = zeros_like(params, self.mu_dtype or self.state_dtype)
        return ScaleByAdamState(zero_count(), mu, zeros_like(params, self.state_dtype, real=True))

    def update(self, updates, state, params=None, **extra):
        b1, b2, started = self.b1, self.b2, state.count > 0
        bound = rate_at(self.clip_value_fn, state.count) if self.use_clipping else jnp.inf

        def leaf(g, m, v):
            x = g / jnp.maximum(jnp.sqrt(v), self.eps)
            if self.use_clipping and jnp.iscomplexobj(x):
                x = x * (bound / jnp.maximum(jnp.abs(x), bound))
            elif self.use_clipping:
                x = jnp.clip(x, -bound, bound)
            x = jnp.where(started, x, 0.0)
            m = b1 * m + (1 - b1) * x
            v = jnp.where(started, b2 * v + (1 - b2) * abs_sq(g), abs_sq(g))
            return b1 * m + (1 - b1) * x if self.nesterov else m, m, v

        updates, mu, nu = map_leaves(leaf, updates, state.mu, state.nu, params=params)
        return updates, ScaleByAdamState(increment(state.count), mu, nu)

    def as_kernel(self, state, params):
        b1, b2 = self.b1, self.b2
        bound = rate_at(self.clip_value_fn, state.count) if self.use_clipping else jnp.inf
        scalars = kernels.AdoptScalars(b1, 1 - b1, b2, 1 - b2, bound, self.eps, state.count > 0, self.nesterov)
        return (kernels.KernelOp("adopt", scalars, (state.mu, state.nu)),)


@checked
def adopt(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.9999,
    eps: Positive = 1e-6,
    mu_dtype: DType | None = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Rate = _fourth_root,
    state_dtype: DType | None = None,
) -> chain:
    """ADOPT: w ← w − learning_rate · m. See `scale_by_adopt` for m and the arguments.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 1e-3 is usual.

    Taniguchi et al. 2024, arXiv:2411.02853.

    >>> adopt(1e-3)
    chain(scale_by_adopt(), scale_by_learning_rate(0.001))
    """
    rule = scale_by_adopt(b1, b2, eps, mu_dtype, nesterov, use_clipping, clip_value_fn, state_dtype)
    return chain(rule, scale_by_learning_rate(learning_rate))
