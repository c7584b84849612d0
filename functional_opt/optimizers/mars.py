"""MARS: AdamW on gradients whose variance is reduced with those of the previous step."""

from typing import NamedTuple

import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import map_leaves, zeros_like
from ..core.norms import abs_sq, global_norm
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative
from ..core.schedule import Rate
from ..core.slots import Counter, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate


class ScaleByMarsState(NamedTuple):
    """`count`: steps done. `mu`, `nu`: running means of c and |c|². `grad`: the last g."""

    count: Counter
    mu: Signed
    nu: Unsigned
    grad: Signed


@transformation
class scale_by_mars(GradientTransformation):
    """MARS-AdamW's direction: u = m̂ / (√v̂ + eps), Adam on a corrected gradient c of norm at most 1.

    c = g + gamma · b1 / (1 − b1) · (g − the previous g), and c ← c / max(1, ‖c‖), leaf by leaf.
    m ← b1·m + (1 − b1)·c, m̂ = m / (1 − b1ᵗ); v ← b2·v + (1 − b2)·|c|², v̂ = v / (1 − b2ᵗ).

    Args:
        b1, b2: decay rates of the two means, in [0, 1).
        eps: added outside the root, ≥ 0.
        gamma: weight of the correction, ≥ 0; 0 gives Adam on clipped gradients, 1 gives STORM's correction.
        state_dtype: storage dtype of m, v and the last g. None means the params' dtype, or float32 for 16-bit params.

    Yuan et al. 2024, arXiv:2411.10438, algorithm 2, in its approximate form: the previous gradient is that of its own
    batch, so a step computes one gradient. The first step has no previous gradient: c = g.

    >>> tx = scale_by_mars()
    >>> u, state = tx.update({"w": jnp.array([2.0, -0.1])}, tx.init({"w": jnp.zeros(2)}))
    >>> u["w"].round(3).tolist(), state.mu["w"].round(4).tolist()
    ([1.0, -1.0], [0.04989999905228615, -0.0024999999441206455])

    Differs from the authors' code, which uses 0 for the gradient before the first, and by default leaves vectors to
    AdamW. Use `partition` for that here.
    """

    preconditions = True
    b1: Decay = 0.95
    b2: Decay = 0.99
    eps: NonNegative = 1e-8
    gamma: NonNegative = 0.025
    state_dtype: Static[DType | None] = None

    def init(self, params):
        mu, grad = (zeros_like(params, self.state_dtype) for _ in range(2))
        return ScaleByMarsState(zero_count(), mu, zeros_like(params, self.state_dtype, real=True), grad)

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2

        def leaf(g, m, v, before):
            c = g + self.gamma * b1 / (1 - b1) * jnp.where(t == 1, 0.0, g - before)
            c = c / jnp.maximum(1.0, global_norm(c))
            m = b1 * m + (1 - b1) * c
            v = b2 * v + (1 - b2) * abs_sq(c)
            return m / (1 - b1**t) / (jnp.sqrt(v / (1 - b2**t)) + self.eps), m, v, g

        updates, mu, nu, grad = map_leaves(leaf, updates, state.mu, state.nu, state.grad, params=params)
        return updates, ScaleByMarsState(t, mu, nu, grad)


@checked
def mars(
    learning_rate: Rate,
    b1: Decay = 0.95,
    b2: Decay = 0.99,
    eps: NonNegative = 1e-8,
    gamma: NonNegative = 0.025,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """MARS-AdamW: w ← w − learning_rate · (m̂ / (√v̂ + eps) + weight_decay · w). See `scale_by_mars`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 3e-3 is usual.
        weight_decay, mask: as in `add_decayed_weights`.

    Yuan et al. 2024, arXiv:2411.10438.

    >>> mars(3e-3)
    chain(scale_by_mars(), add_decayed_weights(), scale_by_learning_rate(0.003))
    """
    rule = scale_by_mars(b1, b2, eps, gamma, state_dtype)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
