"""COCOB: coin betting, without a learning rate."""

from typing import NamedTuple

import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import copy_of, full_like, map_leaves, zeros_like
from ..core.paths import Mask
from ..core.ranges import DType, Positive
from ..core.schedule import Rate
from ..core.slots import Params, Signed16, Unsigned16
from ..core.transformation import GradientTransformation, needs_params, transformation
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from .distance import dot, safe_divide


class COCOBState(NamedTuple):
    """`init_particles`: w₀. `cumulative_gradients`: θ. `scale`: L. `subgradients`: G. `reward`: R."""

    init_particles: Params
    cumulative_gradients: Signed16
    scale: Unsigned16
    subgradients: Unsigned16
    reward: Unsigned16


@transformation
class scale_by_cocob(GradientTransformation):
    """COCOB-Backprop's descent step, per element: w + u = w₀ + θ·(L + R) / (L·max(G + L, alpha·L)).

    L ← max(L, |g|), G ← G + |g|, θ ← θ − g and R ← max(R − (w − w₀)·g, 0). The step grows with R, the reward won so
    far by betting on the signs of the gradients.

    Args:
        alpha: sets the first step to 1/alpha, > 0.
        eps: initial L, > 0.
        state_dtype: storage dtype of θ, L, G and R. None means the params' dtype, or float32 for 16-bit params; w₀
            always has that dtype.

    Raises ValueError without params.

    Orabona & Tommasi 2017, arXiv:1705.07795, algorithm 2.

    >>> tx, w = scale_by_cocob(), jnp.array([1.0, 1.0])
    >>> [f"{u:.3f}" for u in tx.update(jnp.array([50.0, -0.1]), tx.init(w), w)[0]]
    ['-0.010', '0.010']
    """

    alpha: Positive = 100.0
    eps: Positive = 1e-8
    state_dtype: Static[DType | None] = None

    def init(self, params):
        return COCOBState(
            init_particles=copy_of(params),
            cumulative_gradients=zeros_like(params, self.state_dtype),
            scale=full_like(params, self.eps, self.state_dtype, real=True),
            subgradients=zeros_like(params, self.state_dtype, real=True),
            reward=zeros_like(params, self.state_dtype, real=True),
        )

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)

        def leaf(g, theta, scale, total, reward, w, w0):
            size = jnp.abs(g)
            scale = jnp.maximum(scale, size)
            total = total + size
            reward = jnp.maximum(reward - dot(w - w0, g), 0.0)
            theta = theta - g
            bet = safe_divide(theta, scale) * safe_divide(
                scale + reward, jnp.maximum(total + scale, self.alpha * scale)
            )
            return w0 - w + bet, theta, scale, total, reward

        _, *slots = state
        updates, *slots = map_leaves(leaf, updates, *slots, read=(params, state.init_particles), params=params)
        return updates, COCOBState(state.init_particles, *slots)


@checked
def cocob(
    learning_rate: Rate = 1.0,
    alpha: Positive = 100.0,
    eps: Positive = 1e-8,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """COCOB-Backprop: w ← w₀ + θ·(L + R) / (L·max(G + L, alpha·L)). See `scale_by_cocob` for the terms.

    Args:
        learning_rate: a factor on the gradients: a number ≥ 0, a schedule, or a function of the count. Steps do not
            depend on the overall scale of the gradients, so a number has no effect; a schedule weights early
            gradients against late ones.
        weight_decay, mask: added to the gradients first, as in `add_decayed_weights`.

    Orabona & Tommasi 2017, arXiv:1705.07795.

    >>> cocob()
    chain(add_decayed_weights(), scale_by_learning_rate(1.0, flip_sign=False), scale_by_cocob())
    """
    rate = scale_by_learning_rate(learning_rate, flip_sign=False)
    return chain(add_decayed_weights(weight_decay, mask), rate, scale_by_cocob(alpha, eps, state_dtype))
