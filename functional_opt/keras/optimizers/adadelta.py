"""Adadelta: its arguments, slots and transformation."""

from typing import Any

from ...core.ranges import Range
from ...optimizers.adadelta import scale_by_adadelta
from ...transforms.combining.chain import chain
from ...transforms.scaling.learning_rate import scale_by_learning_rate
from .arguments import or_default
from .keras1 import MayLackIteration
from .optimizer import EPSILON


class Adadelta(MayLackIteration):
    """p ← p − learning_rate · u with u = √(accum_var + ε) / √(accum_grad + ε) · g: running means of u² and g².

    Args:
        learning_rate: a number, a schedule, or a callable; the paper uses 1.0.
        rho: decay of the means, in [0, 1).
        epsilon: ε; 0 or None means 1e-7.
        name, kwargs: as in `Optimizer`.

    Slots: accum_grad, accum_var. Zeiler 2012, arXiv:1212.5701.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = Adadelta(1.0, rho=0.0).minimize(lambda: v**2 / 2, [v])
    >>> round(float(v), 5)
    0.99968
    """

    slots = ({"accum_grad": "e_g"}, {"accum_var": "e_x"})
    keras3_slots = ({"accumulated_grad": "e_g", "accumulated_delta_var": "e_x"},)
    row_mode = "touched"
    settings = ("epsilon",)
    ranges = {"epsilon": Range("(0, inf)")}

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: Any = 0.95,
        epsilon: float | None = EPSILON,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self._set_hyper("rho", rho)
        self.epsilon = or_default(epsilon)

    def transform(self, hyper):
        return chain(scale_by_adadelta(hyper.rho, self.epsilon), scale_by_learning_rate(hyper.learning_rate))
