"""The base of Adam and its relatives."""

from typing import Any

from ...core.ranges import Range
from .arguments import or_default
from .optimizer import EPSILON, Optimizer


class TwoMoments(Optimizer):
    """Base of Adam and its relatives: takes a learning rate, the decay of two running means, and an epsilon."""

    settings = ("epsilon",)
    ranges = {"epsilon": Range("[0, inf)")}

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: float | None = EPSILON,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self._set_hyper("beta_1", beta_1)
        self._set_hyper("beta_2", beta_2)
        self.epsilon = or_default(epsilon)
