"""AdamW: its arguments; all else is Adam's."""

from typing import Any

from .adam import Adam
from .optimizer import EPSILON


class AdamW(Adam):
    """Adam with p ← p − weight_decay · learning_rate · p before each update. Keras 3 only ("keras3" dialect).

    Args:
        learning_rate: a number, a schedule, or a callable.
        weight_decay: a number ≥ 0; see `exclude_from_weight_decay`.
        beta_1, beta_2, epsilon, amsgrad, name, kwargs: as in `Adam`.

    Slots: momentum, velocity, velocity_hat. Loshchilov & Hutter 2017, arXiv:1711.05101.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = AdamW(0.1, weight_decay=0.5).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    0.85
    """

    default_dialect = "keras3"

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: float | None = 0.004,
        beta_1: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: float | None = EPSILON,
        amsgrad: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ):
        if weight_decay is None:
            raise ValueError("Argument `weight_decay` must be a float. Received: weight_decay=None")
        super().__init__(learning_rate, beta_1, beta_2, epsilon, amsgrad, name, weight_decay=weight_decay, **kwargs)
