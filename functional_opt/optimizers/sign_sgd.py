"""signSGD and Signum: steps of the same length for every weight."""

import jax.numpy as jnp

from ..core.checks import checked
from ..core.leaves import map_leaves
from ..core.ranges import Decay, DType
from ..core.schedule import Rate
from ..core.transformation import EmptyState, GradientTransformation, transformation
from ..transforms.combining.chain import chain
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from ..transforms.scaling.moments import ema


@transformation
class scale_by_sign(GradientTransformation):
    """The sign of the updates: u = sign(g); g / |g| for complex g, and 0 at 0.

    Bernstein et al. 2018, arXiv:1802.04434.

    >>> scale_by_sign().update({"w": jnp.array([5.0, -0.1, 0.0])}, EmptyState())[0]["w"].tolist()
    [1.0, -1.0, 0.0]
    """

    preconditions = True

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        return map_leaves(jnp.sign, updates, params=params), state


@checked
def sign_sgd(learning_rate: Rate) -> chain:
    """signSGD: w ← w − learning_rate · sign(g).

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count: the length of every step.

    Bernstein et al. 2018, arXiv:1802.04434.

    >>> sign_sgd(0.01)
    chain(scale_by_sign(), scale_by_learning_rate(0.01))
    """
    return chain(scale_by_sign(), scale_by_learning_rate(learning_rate))


@checked
def signum(
    learning_rate: Rate,
    beta: Decay = 0.9,
    accumulator_dtype: DType | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """Signum: w ← w − learning_rate · sign(m), m ← beta·m + (1 − beta)·g.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count: the length of every step.
        beta: decay rate of the mean, in [0, 1).
        accumulator_dtype, state_dtype: storage dtype of m. Both mean the same: `ema` has the first, all optimizers
            the second; the first wins. None means the params' dtype, or float32 for 16-bit params.

    Bernstein et al. 2018, arXiv:1802.04434, algorithm 2.

    >>> signum(0.01)
    chain(ema(0.9, debias=False), scale_by_sign(), scale_by_learning_rate(0.01))
    """
    mean = ema(beta, False, accumulator_dtype or state_dtype)
    return chain(mean, scale_by_sign(), scale_by_learning_rate(learning_rate))
