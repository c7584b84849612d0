"""Adagrad: steps divided by the root of the sum of all squares so far."""

from typing import NamedTuple

import jax.numpy as jnp

from ..core import kernels
from ..core.checks import Static, checked
from ..core.leaves import full_like, map_leaves
from ..core.norms import abs_sq
from ..core.ranges import DType, NonNegative
from ..core.schedule import Rate
from ..core.slots import Unsigned
from ..core.transformation import GradientTransformation, transformation
from ..transforms.combining.chain import chain
from ..transforms.scaling.learning_rate import scale_by_learning_rate


class ScaleByRssState(NamedTuple):
    """`sum_of_squares`: Σ|g|² over the steps, a leaf for each param."""

    sum_of_squares: Unsigned


@transformation
class scale_by_rss(GradientTransformation):
    """Adagrad's direction: s ← s + |g|²; u = g / √(s + eps), 0 where s is 0.

    Args:
        initial_accumulator_value: initial value of s, ≥ 0.
        eps: added inside the root, ≥ 0; outside it with `eps_in_sqrt=False`, √s + eps, as Keras 2 does.
        eps_in_sqrt: whether eps is added inside the root.
        state_dtype: storage dtype of s. None means the params' dtype, or float32 for 16-bit params.

    Duchi, Hazan & Singer 2011, JMLR 12.

    >>> tx = scale_by_rss(initial_accumulator_value=0.0)
    >>> u, state = tx.update({"w": 3.0}, tx.init({"w": 0.0}))
    >>> u, state = tx.update({"w": 4.0}, state)
    >>> round(u["w"].item(), 3), state.sum_of_squares["w"].item()
    (0.8, 25.0)
    """

    preconditions = True
    initial_accumulator_value: NonNegative = 0.1
    eps: NonNegative = 1e-7
    eps_in_sqrt: Static[bool] = True
    state_dtype: Static[DType | None] = None

    def init(self, params):
        return ScaleByRssState(full_like(params, self.initial_accumulator_value, self.state_dtype, real=True))

    def update(self, updates, state, params=None, **extra):
        def leaf(g, s):
            s = s + abs_sq(g)
            root = jnp.sqrt(s + self.eps) if self.eps_in_sqrt else jnp.sqrt(s) + self.eps
            return jnp.where(s > 0, g / jnp.where(s > 0, root, 1.0), 0.0), s

        updates, s = map_leaves(leaf, updates, state.sum_of_squares, params=params)
        return updates, ScaleByRssState(s)

    def as_kernel(self, state, params):
        op = "rss" if self.eps_in_sqrt else "rss_outside"
        return (kernels.KernelOp(op, (self.eps,), (state.sum_of_squares,)),)


@checked
def adagrad(
    learning_rate: Rate,
    initial_accumulator_value: NonNegative = 0.1,
    eps: NonNegative = 1e-7,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """Adagrad: w ← w − learning_rate · g / √(Σ|g|² + eps). See `scale_by_rss`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 1e-1 to 1e-2 is usual.

    Duchi, Hazan & Singer 2011, JMLR 12.

    >>> adagrad(0.1)
    chain(scale_by_rss(), scale_by_learning_rate(0.1))
    """
    rule = scale_by_rss(initial_accumulator_value, eps, state_dtype=state_dtype)
    return chain(rule, scale_by_learning_rate(learning_rate))
