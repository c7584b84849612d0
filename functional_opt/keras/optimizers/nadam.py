"""Nadam: its arguments, slots and transformation."""

from typing import Any

from ...core.ranges import Range
from ...core.schedule import Schedule
from ...optimizers.nadam import scale_by_nadam
from ...transforms.combining.chain import chain
from ...transforms.scaling.learning_rate import scale_by_learning_rate
from .arguments import check
from .configs import as_arguments
from .schedules import LearningRateSchedule
from .two_moments import TwoMoments


class Nadam(TwoMoments):
    """Adam with Nesterov's momentum, which is warmed up. See `scale_by_nadam` for the rule.

    Args:
        learning_rate: a number or a callable; a schedule only in the "keras3" dialect.
        beta_1, beta_2: decay of the means, in [0, 1).
        epsilon: ε; 0 or None means 1e-7.
        name, kwargs: as in `Optimizer`. In the "keras2" dialect `schedule_decay`, by default 0.004, sets how
            fast the momentum warms up. It overwrites a `decay` that is passed, as in Keras.

    Slots: m, v. Dozat 2016, Incorporating Nesterov Momentum into Adam.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = Nadam(0.1).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    0.894
    """

    slots = ({"m": "mu"}, {"v": "nu"})
    keras3_slots = ({"momentum": "mu", "velocity": "nu"},)
    row_mode = "slots_all"
    scalars = {"momentum_cache": "momentum_product"}

    def __init__(self, *args: Any, schedule_decay: float = 0.004, **kwargs: Any):
        check(Range("[0, inf)"), schedule_decay=schedule_decay)
        super().__init__(*args, **kwargs)
        if self.dialect == "keras2":
            self._set_hyper("decay", schedule_decay)

    def _set_hyper(self, name, x):
        if self.dialect == "keras2" and isinstance(x, LearningRateSchedule | Schedule):
            raise ValueError(f"The Nadam optimizer does not support a schedule as its {name} in the 'keras2' dialect")
        super()._set_hyper(name, x)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Returns the optimizer, as in `Optimizer`. Reads `decay` as the momentum's, which Keras loses."""
        config = as_arguments(cls, config)
        if config.get("dialect", cls.default_dialect) == "keras2" and "decay" in config:
            config["schedule_decay"] = config.pop("decay")
        return super().from_config(config, custom_objects)

    @property
    def _decays(self) -> bool:
        return False  # `decay` is the momentum's here

    def transform(self, hyper):
        warmth = hyper.decay if self.dialect == "keras2" else 1.0
        rule = scale_by_nadam(hyper.beta_1, hyper.beta_2, self.epsilon, warmth)
        return chain(rule, scale_by_learning_rate(hyper.learning_rate))
