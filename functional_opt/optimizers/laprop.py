"""LaProp: Adam that divides by the second moment before it averages."""

from typing import NamedTuple

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
from .adam import mean_weights


class ScaleByLaPropState(NamedTuple):
    """`count`: steps done. `mu`: running mean of the normalized g. `nu`: running mean of |g|²."""

    count: Counter
    mu: Signed
    nu: Unsigned


@transformation
class scale_by_laprop(GradientTransformation):
    """LaProp's direction: u = m / (1 − b1ᵗ), m ← b1·m + (1 − b1)·g / (√v̂ + eps).

    v ← b2·v + (1 − b2)·|g|², v̂ = v / (1 − b2ᵗ). No gradient is ever divided by the v of a later step, so any b1 and
    b2 can be combined, whereas Adam needs b1² < b2.

    Args:
        b1, b2: decay rates of the two means, in [0, 1).
        eps: added outside the root, ≥ 0.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params.

    Ziyin, Wang & Ueda 2020, arXiv:2002.04839, algorithm 1.

    >>> tx = scale_by_laprop()
    >>> u, state = tx.update({"w": jnp.array([2.0, -0.1])}, tx.init({"w": jnp.zeros(2)}))
    >>> u["w"].round(3).tolist()
    [1.0, -1.0]

    Differs from the authors' code if the learning rate changes: there it is part of the mean.
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-15
    state_dtype: Static[DType | None] = None

    def init(self, params):
        mu = zeros_like(params, self.state_dtype)
        return ScaleByLaPropState(zero_count(), mu, zeros_like(params, self.state_dtype, real=True))

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2

        def leaf(g, m, v):
            v = b2 * v + (1 - b2) * abs_sq(g)
            m = b1 * m + (1 - b1) * g / (jnp.sqrt(v / (1 - b2**t)) + self.eps)
            return m / (1 - b1**t), m, v

        updates, mu, nu = map_leaves(leaf, updates, state.mu, state.nu, params=params)
        return updates, ScaleByLaPropState(t, mu, nu)

    def as_kernel(self, state, params):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2
        scalars = kernels.AdamScalars(b1, 1 - b1, b2, 1 - b2, *mean_weights(b1, t), 1 - b2**t, 0.0, self.eps)
        return (kernels.KernelOp("laprop", scalars, (state.mu, state.nu)),)


@checked
def laprop(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-15,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """LaProp: w ← w − learning_rate · (m / (1 − b1ᵗ) + weight_decay · w). See `scale_by_laprop`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 4e-4 is the paper's.
        weight_decay, mask: as in `add_decayed_weights`.

    Ziyin, Wang & Ueda 2020, arXiv:2002.04839. The decay is AdamW's, as in the authors' code for transformers. Their
    `laprop.py`, and pytorch_optimizer after it, decay the weights after the step; `laprop.py` does so without the
    learning rate.

    >>> laprop(4e-4)
    chain(scale_by_laprop(), add_decayed_weights(), scale_by_learning_rate(0.0004))
    """
    rule = scale_by_laprop(b1, b2, eps, state_dtype)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
