"""Lamb, which exists only in Keras 3: its slots and transformation."""

from ...optimizers.adam import scale_by_adam
from ...transforms.combining.chain import chain
from ...transforms.scaling.learning_rate import scale_by_learning_rate
from ...transforms.scaling.trust_ratio import scale_by_trust_ratio
from .two_moments import TwoMoments


class Lamb(TwoMoments):
    """p ← p − learning_rate · ‖p‖ / ‖u‖ · u, u Adam's direction; the ratio is 1 if one of the norms is 0.

    Args:
        learning_rate: a number, a schedule, or a callable.
        beta_1, beta_2: decay of the means, in [0, 1).
        epsilon: added outside the root; 0 or None means 1e-7.
        name, kwargs: as in `Optimizer`; `weight_decay` is applied outside the ratio.

    Slots: momentum, velocity. You et al. 2019, arXiv:1904.00962.

    >>> from functional_opt import keras
    >>> v = keras.Variable(5.0, name="v")
    >>> _ = Lamb(0.1).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    4.5
    """

    default_dialect = "keras3"
    slots = ({"momentum": "mu", "velocity": "nu"},)

    def transform(self, hyper):
        adam = scale_by_adam(hyper.beta_1, hyper.beta_2, self.epsilon)
        return chain(adam, scale_by_trust_ratio(), scale_by_learning_rate(hyper.learning_rate))
