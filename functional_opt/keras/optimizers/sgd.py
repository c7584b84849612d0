"""SGD: its arguments, slots and transformation."""

from typing import Any

from ...transforms.combining.chain import chain
from ...transforms.scaling.learning_rate import scale_by_learning_rate
from ...transforms.scaling.moments import trace
from .arguments import has_momentum
from .optimizer import Optimizer


class SGD(Optimizer):
    """p ← p + a with a ← momentum·a − learning_rate·g; with nesterov p ← p + momentum·a − learning_rate·g.

    Args:
        learning_rate: a number, a schedule, or a callable.
        momentum: in [0, 1]; 0 keeps no slot.
        nesterov: whether to look one step ahead; without momentum it has no effect.
        name, kwargs: as in `Optimizer`.

    Slots: momentum (unless it is 0), which includes the learning rate.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = SGD(0.1).minimize(lambda: v**2 / 2, [v])
    >>> round(float(v), 3)
    0.9
    """

    slots = ({"momentum": "trace"},)
    row_mode = "touched"
    settings = ("nesterov",)

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: Any = 0.0,
        nesterov: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self._momentum = has_momentum(momentum)
        self._set_hyper("momentum", momentum)
        self.nesterov = nesterov

    def transform(self, hyper):
        step = scale_by_learning_rate(hyper.learning_rate)
        return chain(step, trace(hyper.momentum, nesterov=self.nesterov)) if self._momentum else step
