"""ACProp: AdaBelief with its denominator delayed by one step."""

from typing import NamedTuple

import jax.numpy as jnp

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


class ScaleByAcpropState(NamedTuple):
    """`count`: steps done. `mu`: running mean of g. `nu`: running mean of |g − mu|²."""

    count: Counter
    mu: Signed
    nu: Unsigned


@transformation
class scale_by_acprop(GradientTransformation):
    """ACProp's direction: u = g / (√v̂ + eps); then v ← b2·v + (1 − b2)·|g − m|² + eps_root, m ← b1·m + (1 − b1)·g.

    v̂ = v / (1 − b2ᵗ⁻¹) is the variance from the steps before g; at the first step v̂ = 1.

    Args:
        b1, b2: decay rates of the two means, in [0, 1).
        eps: added to the root, ≥ 0.
        eps_root: added to v at every step, ≥ 0.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params.

    Zhuang et al. 2021, arXiv:2110.05454. As in Optax, g is compared with the mean from before the step. The paper
    uses the mean from after it, which multiplies v by b1², all else being equal.

    >>> tx = scale_by_acprop()
    >>> u, state = tx.update({"w": 3.0}, tx.init({"w": 0.0}))
    >>> v, state = tx.update({"w": 3.0}, state)
    >>> u["w"].item(), round(v["w"].item(), 3)
    (3.0, 1.0)
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-16
    eps_root: NonNegative = 1e-16
    state_dtype: Static[DType | None] = None

    def init(self, params):
        mu = zeros_like(params, self.state_dtype)
        return ScaleByAcpropState(zero_count(), mu, zeros_like(params, self.state_dtype, real=True))

    def update(self, updates, state, params=None, **extra):
        first = state.count == 0
        weight = 1 - self.b2 ** jnp.maximum(state.count, 1)

        def leaf(g, m, v):
            v_hat = jnp.where(first, 1.0, v / weight)
            v = self.b2 * v + (1 - self.b2) * abs_sq(g - m) + self.eps_root
            return g / (jnp.sqrt(v_hat) + self.eps), self.b1 * m + (1 - self.b1) * g, v

        updates, mu, nu = map_leaves(leaf, updates, state.mu, state.nu, params=params)
        return updates, ScaleByAcpropState(increment(state.count), mu, nu)


@checked
def acprop(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-16,
    eps_root: NonNegative = 1e-16,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """ACProp: w ← w − learning_rate · (g / (√v̂ + eps) + weight_decay · w). See `scale_by_acprop`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count. The first step has the length of
            learning_rate · g.
        weight_decay, mask: as in `add_decayed_weights`.

    Zhuang et al. 2021, arXiv:2110.05454.

    >>> acprop(1e-3)
    chain(scale_by_acprop(), add_decayed_weights(), scale_by_learning_rate(0.001))
    """
    rule = scale_by_acprop(b1, b2, eps, eps_root, state_dtype)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
