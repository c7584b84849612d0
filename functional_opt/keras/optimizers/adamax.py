"""Adamax: its slots and transformation."""

from ...optimizers.adamax import scale_by_adamax
from ...transforms.combining.chain import chain
from ...transforms.scaling.learning_rate import scale_by_learning_rate
from .two_moments import TwoMoments


class Adamax(TwoMoments):
    """p ← p − learning_rate / (1 − β₁ᵗ) · m / (v + ε) with v ← max(β₂·v, |g|), m a running mean of g.

    Args:
        learning_rate: a number, a schedule, or a callable.
        beta_1, beta_2: decay of m and v, in [0, 1).
        epsilon: ε; 0 or None means 1e-7.
        name, kwargs: as in `Optimizer`.

    Slots: m, v. Kingma & Ba 2014, arXiv:1412.6980, section 7.1.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = Adamax(0.1).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    0.9
    """

    slots = ({"m": "mu"}, {"v": "nu"})
    keras3_slots = ({"momentum": "mu", "norm": "nu"},)
    row_mode = "touched"

    def transform(self, hyper):
        rule = scale_by_adamax(hyper.beta_1, hyper.beta_2, self.epsilon, eps_in_max=False)
        return chain(rule, scale_by_learning_rate(hyper.learning_rate))
