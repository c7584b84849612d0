"""Adadelta: steps in units of the weights, from running means of squares."""

from typing import NamedTuple

import jax.numpy as jnp

from ..core import kernels
from ..core.checks import Static, checked
from ..core.leaves import map_leaves, zeros_like
from ..core.norms import abs_sq
from ..core.paths import Mask
from ..core.ranges import Decay, DType, Positive
from ..core.schedule import Rate
from ..core.slots import Unsigned
from ..core.transformation import GradientTransformation, transformation
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate


class ScaleByAdaDeltaState(NamedTuple):
    """`e_g`, `e_x`: running means of |g|² and |u|²."""

    e_g: Unsigned
    e_x: Unsigned


@transformation
class scale_by_adadelta(GradientTransformation):
    """Adadelta's direction: G ← rho·G + (1 − rho)·|g|²; u = √(X + eps) / √(G + eps) · g; X ← rho·X + (1 − rho)·|u|².

    Args:
        rho: decay rate of both means, in [0, 1).
        eps: added inside both roots, > 0. It also sets the size of the first step, when X = 0.
        state_dtype: storage dtype of G and X. None means the params' dtype, or float32 for 16-bit params.

    Zeiler 2012, arXiv:1212.5701.

    >>> tx = scale_by_adadelta(rho=0.75, eps=1.0)
    >>> u, state = tx.update({"w": 4.0}, tx.init({"w": 0.0}))
    >>> round(u["w"].item(), 3), state.e_g["w"].item()
    (1.789, 4.0)
    """

    preconditions = True
    rho: Decay = 0.9
    eps: Positive = 1e-6
    state_dtype: Static[DType | None] = None

    def init(self, params):
        e_g, e_x = (zeros_like(params, self.state_dtype, real=True) for _ in range(2))
        return ScaleByAdaDeltaState(e_g, e_x)

    def update(self, updates, state, params=None, **extra):
        rho, eps = self.rho, self.eps

        def leaf(g, e_g, e_x):
            e_g = rho * e_g + (1 - rho) * abs_sq(g)
            u = jnp.sqrt(e_x + eps) / jnp.sqrt(e_g + eps) * g
            return u, e_g, rho * e_x + (1 - rho) * abs_sq(u)

        updates, e_g, e_x = map_leaves(leaf, updates, state.e_g, state.e_x, params=params)
        return updates, ScaleByAdaDeltaState(e_g, e_x)

    def as_kernel(self, state, params):
        scalars = kernels.AdadeltaScalars(self.rho, 1 - self.rho, self.eps)
        return (kernels.KernelOp("adadelta", scalars, (state.e_g, state.e_x)),)


@checked
def adadelta(
    learning_rate: Rate | None = None,
    rho: Decay = 0.9,
    eps: Positive = 1e-6,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """Adadelta: w ← w − learning_rate · √(X + eps) / √(G + eps) · (g + weight_decay · w). See `scale_by_adadelta`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; None means 1, as in the paper.
        weight_decay, weight_decay_mask: as in `add_decayed_weights`; the decay is added to the gradient.

    Zeiler 2012, arXiv:1212.5701.

    >>> adadelta(1.0, rho=0.95)
    chain(add_decayed_weights(), scale_by_adadelta(rho=0.95), scale_by_learning_rate(1.0))
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_adadelta(rho, eps, state_dtype),
        scale_by_learning_rate(learning_rate),
    )
