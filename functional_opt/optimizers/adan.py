"""Adan: Adam with Nesterov momentum, from differences of gradients."""

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


class ScaleByAdanState(NamedTuple):
    """`m`, `v`, `n`: running means of g, its change d and |g + b2·d|². `g`: the last gradient. `t`: steps done."""

    m: Signed
    v: Signed
    n: Unsigned
    g: Signed
    t: Counter


@transformation
class scale_by_adan(GradientTransformation):
    """Adan's direction: u = (m̂ + b2·v̂) / (√(n̂ + eps_root) + eps).

    With d = g − (the previous g), 0 at the first step: m ← b1·m + (1 − b1)·g; v ← b2·v + (1 − b2)·d;
    n ← b3·n + (1 − b3)·|g + b2·d|²; m̂, v̂ and n̂ are these divided by 1 − decayᵗ.

    Args:
        b1, b2, b3: decay rates of the three means, in [0, 1): each is one minus the paper's β.
        eps: added outside the root, ≥ 0.
        eps_root: added inside the root, ≥ 0.
        state_dtype: storage dtype of m, v, n and g. None means the params' dtype, or float32 for 16-bit params.

    Xie et al. 2022, arXiv:2208.06677.

    >>> tx = scale_by_adan()
    >>> u, state = tx.update({"w": jnp.array([2.0, -0.1])}, tx.init({"w": jnp.zeros(2)}))
    >>> u["w"].round(3).tolist()
    [1.0, -1.0]

    Differs from Optax 0.2.8, which weights d and v̂ by 1 − b2, the paper's β₂, where the paper has 1 − β₂
    (Optax #1715).
    """

    preconditions = True
    b1: Decay = 0.98
    b2: Decay = 0.92
    b3: Decay = 0.99
    eps: NonNegative = 1e-8
    eps_root: NonNegative = 0.0
    state_dtype: Static[DType | None] = None

    def init(self, params):
        m, v, g = (zeros_like(params, self.state_dtype) for _ in range(3))
        return ScaleByAdanState(m, v, zeros_like(params, self.state_dtype, real=True), g, zero_count())

    def update(self, updates, state, params=None, **extra):
        t = increment(state.t)
        b1, b2, b3 = self.b1, self.b2, self.b3

        def leaf(g, m, v, n, before):
            d = jnp.where(t == 1, 0.0, g - before)
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * d
            n = b3 * n + (1 - b3) * abs_sq(g + b2 * d)
            step = m / (1 - b1**t) + b2 * v / (1 - b2**t)
            return step / (jnp.sqrt(n / (1 - b3**t) + self.eps_root) + self.eps), m, v, n, g

        updates, m, v, n, g = map_leaves(leaf, updates, state.m, state.v, state.n, state.g, params=params)
        return updates, ScaleByAdanState(m, v, n, g, t)

    def as_kernel(self, state, params):
        t = increment(state.t)
        b1, b2, b3 = self.b1, self.b2, self.b3
        decays, corrections = (b1, 1 - b1, b2, 1 - b2, b3, 1 - b3), (1 - b1**t, 1 - b2**t, 1 - b3**t)
        scalars = kernels.AdanScalars(*decays, *corrections, self.eps_root, self.eps, t == 1)
        return (kernels.KernelOp("adan", scalars, (state.m, state.v, state.n, state.g)),)


@checked
def adan(
    learning_rate: Rate,
    b1: Decay = 0.98,
    b2: Decay = 0.92,
    b3: Decay = 0.99,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """Adan: w ← w − learning_rate · ((m̂ + b2·v̂) / (√(n̂ + eps_root) + eps) + weight_decay · w). See `scale_by_adan`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 1e-3 to 1e-2 are usual.
        weight_decay, mask: as in `add_decayed_weights`.

    Xie et al. 2022, arXiv:2208.06677. The decay is AdamW's; the paper divides by 1 + learning_rate · weight_decay
    instead.

    >>> adan(1e-3)
    chain(scale_by_adan(eps_root=1e-08), add_decayed_weights(), scale_by_learning_rate(0.001))
    """
    rule = scale_by_adan(b1, b2, b3, eps, eps_root, state_dtype)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
