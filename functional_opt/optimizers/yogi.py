"""Yogi: Adam whose second moment grows and shrinks by a share of |g|², not of itself."""

import jax.numpy as jnp

from ..core import kernels
from ..core.checks import Static, checked
from ..core.leaves import full_like, map_leaves, zeros_like
from ..core.norms import abs_sq
from ..core.ranges import Decay, DType, NonNegative
from ..core.schedule import Rate
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..transforms.combining.chain import chain
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from .adam import ScaleByAdamState, mean_weights


@transformation
class scale_by_yogi(GradientTransformation):
    """Yogi's direction: u = m̂ / (√(v̂ + eps_root) + eps).

    m ← b1·m + (1 − b1)·g; v ← v − (1 − b2)·sign(v − |g|²)·|g|²; m̂ = m / (1 − b1ᵗ), v̂ = v / (1 − b2ᵗ).

    Args:
        b1: decay rate of the mean, in [0, 1).
        b2: in [0, 1); 1 − b2 is the share of |g|² by which v moves.
        eps: added outside the root, ≥ 0.
        eps_root: added inside the root, ≥ 0.
        initial_accumulator_value: initial value of v, ≥ 0.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params.

    Zaheer et al. 2018, Adaptive Methods for Nonconvex Optimization, NeurIPS.

    >>> tx = scale_by_yogi()
    >>> u, state = tx.update({"w": jnp.array([2.0, -0.1])}, tx.init({"w": jnp.zeros(2)}))
    >>> [round(x, 6) for x in state.nu["w"].tolist()]
    [0.004001, 1.1e-05]

    Differs from Optax, which also initializes m with initial_accumulator_value. Here, as in the paper, m starts at 0.
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-3
    eps_root: NonNegative = 0.0
    initial_accumulator_value: NonNegative = 1e-6
    state_dtype: Static[DType | None] = None

    def init(self, params):
        nu = full_like(params, self.initial_accumulator_value, self.state_dtype, real=True)
        return ScaleByAdamState(zero_count(), zeros_like(params, self.state_dtype), nu)

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2

        def leaf(g, m, v):
            m = b1 * m + (1 - b1) * g
            squares = abs_sq(g)
            up = jnp.where(squares < v, -squares, squares)
            v = v + (1 - b2) * jnp.where(squares == v, 0.0, up)  # also where both have overflowed
            return m / (1 - b1**t) / (jnp.sqrt(v / (1 - b2**t) + self.eps_root) + self.eps), m, v

        updates, mu, nu = map_leaves(leaf, updates, state.mu, state.nu, params=params)
        return updates, ScaleByAdamState(t, mu, nu)

    def as_kernel(self, state, params):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2
        scalars = kernels.AdamScalars(
            b1, 1 - b1, b2, 1 - b2, *mean_weights(b1, t), 1 - b2**t, self.eps_root, self.eps
        )
        return (kernels.KernelOp("yogi", scalars, (state.mu, state.nu)),)


@checked
def yogi(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-3,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """Yogi: w ← w − learning_rate · m̂ / (√v̂ + eps), v moved by a share of |g|². See `scale_by_yogi`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 1e-2 is usual.

    Zaheer et al. 2018, Adaptive Methods for Nonconvex Optimization, NeurIPS.

    >>> yogi(0.01)
    chain(scale_by_yogi(), scale_by_learning_rate(0.01))
    """
    return chain(scale_by_yogi(b1, b2, eps, state_dtype=state_dtype), scale_by_learning_rate(learning_rate))
