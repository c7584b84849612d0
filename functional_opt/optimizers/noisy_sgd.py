"""Gradient descent with noise that decays."""

from ..core.checks import checked
from ..core.ranges import NonNegative
from ..core.schedule import Rate
from ..transforms.combining.chain import chain
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from ..transforms.stochastic.noise import Key, add_noise


@checked
def noisy_sgd(
    learning_rate: Rate,
    eta: NonNegative = 0.01,
    gamma: NonNegative = 0.55,
    key: Key = None,
    *,
    seed: Key = None,
) -> chain:
    """Gradient descent with noise: w ← w − learning_rate · (g + σ·z), σ² = eta / (1 + t)^gamma. See `add_noise`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.

    Neelakantan et al. 2015, arXiv:1511.06807.

    >>> noisy_sgd(0.1, key=7)
    chain(add_noise(0.01, 0.55, key=7), scale_by_learning_rate(0.1))
    """
    return chain(add_noise(eta, gamma, key, seed=seed), scale_by_learning_rate(learning_rate))
