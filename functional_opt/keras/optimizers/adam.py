"""Adam: its arguments, slots and transformation."""

from collections.abc import Sequence
from typing import Any

from ...optimizers.adam import scale_by_adam
from ...optimizers.amsgrad import scale_by_amsgrad
from ...transforms.combining.chain import chain
from ...transforms.scaling.learning_rate import scale_by_learning_rate
from .optimizer import EPSILON
from .two_moments import TwoMoments


class Adam(TwoMoments):
    """p ← p − learning_rate · √(1 − β₂ᵗ)/(1 − β₁ᵗ) · m / (√v + ε), m and v running means of g and g².

    Args:
        learning_rate: a number, a schedule, or a callable.
        beta_1, beta_2: decay of the means, in [0, 1).
        epsilon: ε, which is Kingma & Ba's ε̂; 0 or None means 1e-7.
        amsgrad: whether v̂ = max(v̂, v) is used in place of v.
        name, kwargs: as in `Optimizer`.

    Slots: m, v, vhat (with amsgrad). Kingma & Ba 2014, arXiv:1412.6980; Reddi et al. 2018, arXiv:1904.09237.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = Adam(0.1).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    0.9
    """

    slots = ({"m": "mu"}, {"v": "nu"}, {"vhat": "nu_max"})
    keras3_slots = ({"momentum": "mu", "velocity": "nu"}, {"velocity_hat": "nu_max"})
    settings = ("epsilon", "amsgrad")

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: float | None = EPSILON,
        amsgrad: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(learning_rate, beta_1, beta_2, epsilon, name, **kwargs)
        self.amsgrad = amsgrad

    def transform(self, hyper):
        numbers = hyper.beta_1, hyper.beta_2, self.epsilon
        if self.amsgrad:
            rule = scale_by_amsgrad(*numbers, eps_hat=True, max_before_correction=True)
        else:
            rule = scale_by_adam(*numbers, eps_hat=True)
        return chain(rule, scale_by_learning_rate(hyper.learning_rate))

    def _of_older_generations(self, weights: Sequence[Any]) -> Sequence[Any]:
        n = (len(self.weights) - 1) // 2  # Keras 1 kept a third, unused slot for each variable
        return weights[: 2 * n + 1] if not self.amsgrad and len(weights) == 3 * n + 1 else weights
