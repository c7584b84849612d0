"""Rprop: every weight has its own step size, which grows until its gradient changes sign."""

from typing import Annotated, NamedTuple

import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import full_like, map_leaves, zeros_like
from ..core.ranges import Bound, DType, NonNegative, Range, Scalar
from ..core.slots import Signed, Unsigned
from ..core.transformation import GradientTransformation, transformation
from ..transforms.combining.chain import chain
from ..transforms.scaling.learning_rate import scale

Shrink = Annotated[Scalar, Range("(0, 1]")]
Grow = Annotated[Scalar, Range("[1, inf)")]


class ScaleByRpropState(NamedTuple):
    """`step_sizes`: Δ of every weight. `prev_updates`: the last u, 0 after a change of sign."""

    step_sizes: Unsigned
    prev_updates: Signed


@transformation
class scale_by_rprop(GradientTransformation):
    """Rprop's direction: u = Δ · sign(g), or 0 right after g has changed sign.

    Δ starts at learning_rate. It is multiplied by eta_plus where g has the sign of the previous step and by eta_minus
    where it has the opposite sign, and clipped to [min_step_size, max_step_size]. It does not change where the
    previous step was 0. Use gradients of the full data set: noise changes signs.

    Args:
        learning_rate: the first step size, ≥ 0.
        eta_minus: factor of Δ when the sign changes, in (0, 1].
        eta_plus: factor of Δ when the sign stays the same, ≥ 1.
        min_step_size, max_step_size: bounds of Δ, ≥ 0.
        state_dtype: storage dtype of Δ and the last step. None means the params' dtype, or float32 for 16-bit params.

    Riedmiller & Braun 1993, ICNN, without its weight backtracking: Igel & Hüsken 2003, Rprop⁻.

    >>> tx = scale_by_rprop(0.1)
    >>> u, state = tx.update({"w": jnp.array([5.0, -0.1])}, tx.init({"w": jnp.zeros(2)}))
    >>> [round(x, 3) for x in tx.update({"w": jnp.array([5.0, 0.1])}, state)[0]["w"].tolist()]
    [0.12, 0.0]

    Differs from Optax 0.2.8, which returns every step one call late, and 0 at the first call (Optax #1725).
    """

    preconditions = True
    learning_rate: NonNegative
    eta_minus: Shrink = 0.5
    eta_plus: Grow = 1.2
    min_step_size: NonNegative = 1e-6
    max_step_size: Bound = 50.0
    state_dtype: Static[DType | None] = None

    def init(self, params):
        sizes = full_like(params, self.learning_rate, self.state_dtype, real=True)
        return ScaleByRpropState(sizes, zeros_like(params, self.state_dtype))

    def update(self, updates, state, params=None, **extra):
        def leaf(g, size, before):
            agree = jnp.sign((g.conj() * jnp.sign(before)).real)
            factor = jnp.where(agree > 0, self.eta_plus, self.eta_minus)
            changed = jnp.clip(size * factor, self.min_step_size, self.max_step_size)
            size = jnp.where(agree == 0, size, changed)
            u = jnp.where(agree < 0, 0.0, size * jnp.sign(g))
            return u, size, u

        updates, *slots = map_leaves(leaf, updates, state.step_sizes, state.prev_updates, params=params)
        return updates, ScaleByRpropState(*slots)


@checked
def rprop(
    learning_rate: NonNegative,
    eta_minus: Shrink = 0.5,
    eta_plus: Grow = 1.2,
    min_step_size: NonNegative = 1e-6,
    max_step_size: Bound = 50.0,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """Rprop: w ← w − Δ · sign(g), with a Δ per weight that grows and shrinks. See `scale_by_rprop`.

    Riedmiller & Braun 1993, ICNN; Igel & Hüsken 2003.

    >>> rprop(0.01)
    chain(scale_by_rprop(0.01), scale(-1.0))
    """
    return chain(
        scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size, state_dtype), scale(-1.0)
    )
