"""Ftrl: its arguments, slots and transformation."""

from typing import Any

from ...core.ranges import Range
from ...optimizers.ftrl import ftrl
from .arguments import sign
from .optimizer import Optimizer


class Ftrl(Optimizer):
    """Follow the regularized leader: p minimizes a sum of the gradients so far and the penalties. See `ftrl`.

    Args:
        learning_rate: a number, a schedule, or a callable.
        learning_rate_power: ≤ 0; how fast the rate falls as the accumulator grows; 0 for a constant rate.
        initial_accumulator_value: the initial value of the accumulator, ≥ 0.
        l1_regularization_strength, l2_regularization_strength: ≥ 0.
        name: as in `Optimizer`.
        l2_shrinkage_regularization_strength: ≥ 0; an l2 penalty on the present p only.
        beta: ≥ 0; adds beta / (2 · learning_rate) to the l2 penalty.
        kwargs: as in `Optimizer`.

    Slots: accumulator, linear. McMahan et al. 2013, KDD. A weight whose first gradient is 0 becomes 0, as in Keras.

    >>> from functional_opt import keras
    >>> v = keras.Variable(0.0, name="v")
    >>> _ = Ftrl(0.1, l1_regularization_strength=5.0).minimize(lambda: (v - 1) ** 2, [v])
    >>> float(v)
    0.0
    """

    slots = ({"accumulator": "accumulator", "linear": "linear"},)
    row_mode = "touched"
    settings = ("initial_accumulator_value", "l2_shrinkage_regularization_strength")
    ranges = {
        **dict.fromkeys((*settings, "beta"), Range("[0, inf)")),
        **dict.fromkeys(("l1_regularization_strength", "l2_regularization_strength"), Range("[0, inf)")),
        "learning_rate_power": Range("(-inf, 0]"),
    }

    def __init__(
        self,
        learning_rate: Any = 0.001,
        learning_rate_power: Any = -0.5,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: Any = 0.0,
        l2_regularization_strength: Any = 0.0,
        name: str | None = None,
        l2_shrinkage_regularization_strength: float = 0.0,
        beta: Any = 0.0,
        **kwargs: Any,
    ):
        penalties = {
            "initial_accumulator_value": initial_accumulator_value,
            "l1_regularization_strength": l1_regularization_strength,
            "l2_regularization_strength": l2_regularization_strength,
            "l2_shrinkage_regularization_strength": l2_shrinkage_regularization_strength,
            "beta": beta,
        }
        for argument, x in penalties.items():
            if sign(x) < 0:
                raise ValueError(f"`{argument}` needs to be positive or zero. Received: {argument}={x}.")
        if sign(learning_rate_power) > 0:
            raise ValueError(
                "`learning_rate_power` needs to be negative or zero. "
                f"Received: learning_rate_power={learning_rate_power}."
            )
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self._set_hyper("learning_rate_power", learning_rate_power)
        self._set_hyper("l1_regularization_strength", l1_regularization_strength)
        self._set_hyper("l2_regularization_strength", l2_regularization_strength)
        self._set_hyper("beta", beta)
        self.initial_accumulator_value = initial_accumulator_value
        self.l2_shrinkage_regularization_strength = l2_shrinkage_regularization_strength

    def transform(self, hyper):
        return ftrl(
            hyper.learning_rate,
            hyper.learning_rate_power,
            self.initial_accumulator_value,
            hyper.l1_regularization_strength,
            hyper.l2_regularization_strength,
            self.l2_shrinkage_regularization_strength,
            hyper.beta,
        )
