"""Lion, which exists only in Keras 3: its arguments, slots and transformation."""

from typing import Any

from ...core.ranges import Range
from ...optimizers.lion import scale_by_lion
from ...transforms.combining.chain import chain
from ...transforms.scaling.learning_rate import scale_by_learning_rate
from .optimizer import Optimizer


class Lion(Optimizer):
    """p ← p − learning_rate · sign(β₁·m + (1 − β₁)·g); then m ← β₂·m + (1 − β₂)·g.

    Args:
        learning_rate: a number, a schedule, or a callable; 3 to 10 times smaller than Adam's.
        beta_1: weight of the mean in the direction, in (0, 1).
        beta_2: decay of the mean, in [0, 1).
        name, kwargs: as in `Optimizer`.

    Slots: momentum. Chen et al. 2023, arXiv:2302.06675.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = Lion(0.1).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    0.9
    """

    default_dialect = "keras3"
    slots = ({"momentum": "mu"},)
    ranges = {"beta_1": Range("(0, 1)")}

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: Any = 0.9,
        beta_2: Any = 0.99,
        name: str | None = None,
        **kwargs: Any,
    ):
        if isinstance(beta_1, int | float) and not 0 < beta_1 < 1:
            raise ValueError(f"`beta_1` must be between ]0, 1[. Received: beta_1={beta_1}.")
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self._set_hyper("beta_1", beta_1)
        self._set_hyper("beta_2", beta_2)

    def transform(self, hyper):
        return chain(scale_by_lion(hyper.beta_1, hyper.beta_2), scale_by_learning_rate(hyper.learning_rate))
