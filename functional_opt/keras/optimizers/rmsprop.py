"""RMSprop: its arguments, slots and transformation."""

from typing import Any

from ...core.ranges import Range
from ...optimizers.rmsprop import scale_by_rms, scale_by_stddev
from ...transforms.combining.chain import chain
from ...transforms.scaling.learning_rate import scale, scale_by_learning_rate
from ...transforms.scaling.moments import trace
from .arguments import has_momentum, or_default
from .keras1 import MayLackIteration
from .optimizer import EPSILON


class RMSprop(MayLackIteration):
    """p ← p − learning_rate · g / (√(rms − mg²) + ε), rms and (if centered) mg running means of g² and g.

    With momentum: mom ← momentum·mom + learning_rate · g / √(rms − mg² + ε); p ← p − mom. Note the
    place of ε; in the "keras3" dialect it is always inside the root.

    Args:
        learning_rate: a number, a schedule, or a callable.
        rho: decay of the means, in [0, 1).
        momentum: in [0, 1]; 0 keeps no slot.
        epsilon: ε; 0 or None means 1e-7.
        centered: whether mg is subtracted.
        name, kwargs: as in `Optimizer`.

    Slots: rms, momentum, mg. Hinton 2012, lecture 6e.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = RMSprop(0.1).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    0.684
    """

    slots = ({"rms": "nu"}, {"momentum": "trace"}, {"mg": "mu"})
    keras3_slots = ({"velocity": "nu"}, {"momentum": "trace"}, {"average_gradient": "mu"})
    settings = ("epsilon", "centered")
    ranges = {"epsilon": Range("[0, inf)")}

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: Any = 0.9,
        momentum: Any = 0.0,
        epsilon: float | None = EPSILON,
        centered: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self._momentum = has_momentum(momentum)
        self._set_hyper("rho", rho)
        self._set_hyper("momentum", momentum)
        self.epsilon = or_default(epsilon)
        self.centered = centered
        self.row_mode = "touched" if self._momentum else "slots_all"

    def transform(self, hyper):
        rule = scale_by_stddev if self.centered else scale_by_rms
        inside = self._momentum or self.dialect == "keras3"
        direction = rule(hyper.rho, self.epsilon, eps_in_sqrt=inside)
        if not self._momentum:
            return chain(direction, scale_by_learning_rate(hyper.learning_rate))
        ascend = scale_by_learning_rate(hyper.learning_rate, flip_sign=False)
        return chain(direction, ascend, trace(hyper.momentum), scale(-1.0))
