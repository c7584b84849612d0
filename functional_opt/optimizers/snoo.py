"""SNOO: Nesterov momentum on what several steps of an optimizer did."""

from ..core.checks import checked
from ..core.ranges import Decay, PositiveInt
from ..core.schedule import Rate
from ..core.transformation import Transformation
from ..transforms.wrapping.outer_steps import outer_steps
from .sgd import sgd


@checked
def snoo(
    fast_optimizer: Transformation,
    outer_learning_rate: Rate = 0.7,
    outer_momentum: Decay = 0.5,
    sync_period: PositiveInt = 30,
) -> outer_steps:
    """SNOO: `outer_steps` with Nesterov momentum μ: m ← μ·m + g; s ← s − outer_learning_rate · (g + μ·m).

    Args:
        fast_optimizer: the optimizer of every step.
        outer_learning_rate: a number ≥ 0, a schedule, or a function of the number of outer steps.
        outer_momentum: μ, in [0, 1).
        sync_period: steps from one outer step to the next, ≥ 1.

    Kallusky et al. 2025, arXiv:2510.15830. The defaults are those of a record of modded-nanogpt (pull request
    277) over NorMuon.

    >>> snoo(sgd(0.1)).sync_period
    30
    """
    return outer_steps(fast_optimizer, sgd(outer_learning_rate, outer_momentum, nesterov=True), sync_period)
