"""Adagrad: its arguments, slots and transformation."""

from typing import Any

from ...core.ranges import Range
from ...optimizers.adagrad import scale_by_rss
from ...transforms.combining.chain import chain
from ...transforms.scaling.learning_rate import scale_by_learning_rate
from .arguments import or_default, sign
from .keras1 import MayLackIteration
from .optimizer import EPSILON


class Adagrad(MayLackIteration):
    """p ← p − learning_rate · g / (√acc + ε) with acc ← acc + g²; ε inside the root in the "keras3" dialect.

    Args:
        learning_rate: a number, a schedule, or a callable.
        initial_accumulator_value: the initial value of acc, ≥ 0.
        epsilon: ε; 0 or None means 1e-7.
        name, kwargs: as in `Optimizer`.

    Slots: accumulator. Duchi, Hazan & Singer 2011, JMLR 12.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = Adagrad(0.1, initial_accumulator_value=0.0).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    0.9
    """

    slots = ({"accumulator": "sum_of_squares"},)
    row_mode = "touched"
    settings = ("initial_accumulator_value", "epsilon")
    ranges = dict.fromkeys(settings, Range("[0, inf)"))

    def __init__(
        self,
        learning_rate: Any = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float | None = EPSILON,
        name: str | None = None,
        **kwargs: Any,
    ):
        if sign(initial_accumulator_value) < 0:
            raise ValueError(f"initial_accumulator_value must be non-negative: {initial_accumulator_value}")
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self.initial_accumulator_value = initial_accumulator_value
        self.epsilon = or_default(epsilon)

    def transform(self, hyper):
        inside = self.dialect == "keras3"
        rule = scale_by_rss(self.initial_accumulator_value, self.epsilon, eps_in_sqrt=inside)
        return chain(rule, scale_by_learning_rate(hyper.learning_rate))
