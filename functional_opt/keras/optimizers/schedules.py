"""Keras's learning-rate schedules, with Keras's names, built on those of the core."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ... import schedules as core
from ...config.words import short
from ...core.ranges import Positive, Real
from ...core.value import value
from .configs import as_arguments, class_of, within


class LearningRateSchedule:
    """A learning rate that depends on the step. Subclass it with `__call__(step)` and `get_config()`.

    Constructor arguments are stored as attributes of the same names, which `get_config` reads.
    """

    def __call__(self, step: Any) -> jax.Array:
        if type(self).core is LearningRateSchedule.core:
            raise NotImplementedError(f"learning rate schedule {type(self).__name__!r} must override `__call__`")
        return self.core()(step)

    def core(self) -> core.Schedule:
        """Returns the equivalent schedule of the core."""
        return core.as_schedule(type(self).__name__, self.__call__)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, as plain JSON."""
        return dict(self.__dict__)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LearningRateSchedule":
        return cls(**config)


class _ByRate(LearningRateSchedule):
    """Base of ExponentialDecay and InverseTimeDecay: a decay rate that acts once every `decay_steps`."""

    formula: Callable[..., core.Schedule]

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        decay_rate: float,
        staircase: bool = False,
        name: str | None = None,
    ):
        self.initial_learning_rate, self.decay_steps, self.decay_rate = initial_learning_rate, decay_steps, decay_rate
        self.staircase, self.name = staircase, name

    def core(self):
        numbers = self.initial_learning_rate, self.decay_steps, self.decay_rate
        return type(self).formula(*numbers, staircase=self.staircase)


class ExponentialDecay(_ByRate):
    """initial_learning_rate · decay_rate^(step / decay_steps); with staircase the exponent is rounded down.

    >>> round(float(ExponentialDecay(0.1, 10, 0.5)(20)), 4)
    0.025
    """

    formula = core.exponential_decay


class InverseTimeDecay(_ByRate):
    """initial_learning_rate / (1 + decay_rate · step / decay_steps); with staircase the quotient is rounded down.

    >>> round(float(InverseTimeDecay(0.1, 10, 0.5)(20)), 4)
    0.05
    """

    formula = core.inverse_time_decay


class PiecewiseConstantDecay(LearningRateSchedule):
    """values[i] while step ≤ boundaries[i], the last value after that.

    Raises ValueError unless there is one more value than boundaries.

    >>> [round(float(PiecewiseConstantDecay([2], [0.1, 0.01])(t)), 3) for t in (2, 3)]
    [0.1, 0.01]
    """

    def __init__(self, boundaries: Sequence[int], values: Sequence[float], name: str | None = None):
        if len(boundaries) != len(values) - 1:
            raise ValueError(
                "The length of boundaries should be 1 less than the length of values. "
                f"Received: boundaries={boundaries} of length {len(boundaries)}, and values={values} of "
                f"length {len(values)}."
            )
        self.boundaries, self.values, self.name = list(boundaries), list(values), name

    def core(self):
        # the core's pieces begin at their boundary, Keras's after it
        pieces = [core.constant_schedule(v) for v in self.values]
        return core.join_schedules(pieces, [b + 1 for b in self.boundaries])


class PolynomialDecay(LearningRateSchedule):
    """(initial_learning_rate − end_learning_rate) · (1 − step/decay_steps)^power + end_learning_rate.

    After decay_steps it stays at end_learning_rate; with cycle, decay_steps grows to its next multiple instead.

    >>> round(float(PolynomialDecay(0.1, 10, 0.0)(5)), 3)
    0.05
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        end_learning_rate: float = 0.0001,
        power: float = 1.0,
        cycle: bool = False,
        name: str | None = None,
    ):
        self.initial_learning_rate, self.decay_steps = initial_learning_rate, decay_steps
        self.end_learning_rate, self.power, self.cycle, self.name = end_learning_rate, power, cycle, name

    def core(self):
        make = _cycle if self.cycle else core.polynomial_schedule
        return make(self.initial_learning_rate, self.end_learning_rate, self.power, self.decay_steps)


@value
class _cycle(core.Schedule):
    """A polynomial decay whose length is the next multiple of `steps` at every count."""

    init_value: Real
    end_value: Real
    power: Real
    steps: Positive

    def __call__(self, count):
        multiple = jnp.maximum(1.0, jnp.ceil(count / self.steps))
        left = 1 - count / (self.steps * multiple)
        return (self.init_value - self.end_value) * left**self.power + self.end_value


class CosineDecay(LearningRateSchedule):
    """Half a cosine from initial_learning_rate to alpha times it over decay_steps.

    With warmup_target, the rate first rises linearly from initial_learning_rate to warmup_target over
    warmup_steps, then follows the cosine down from there. Loshchilov & Hutter 2016, arXiv:1608.03983.

    >>> round(float(CosineDecay(0.1, 10)(5)), 3)
    0.05
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        alpha: float = 0.0,
        name: str | None = None,
        warmup_target: float | None = None,
        warmup_steps: int = 0,
    ):
        self.initial_learning_rate, self.decay_steps, self.alpha = initial_learning_rate, decay_steps, alpha
        self.name, self.warmup_target, self.warmup_steps = name, warmup_target, warmup_steps

    def core(self):
        if self.warmup_target is None or self.warmup_steps == 0:
            return core.cosine_decay_schedule(self.initial_learning_rate, self.decay_steps, self.alpha)
        rise = core.linear_schedule(self.initial_learning_rate, self.warmup_target, self.warmup_steps)
        fall = core.cosine_decay_schedule(self.warmup_target, self.decay_steps, self.alpha)
        return core.join_schedules([rise, fall], [self.warmup_steps])


class CosineDecayRestarts(LearningRateSchedule):
    """Cosine decays one after another, each t_mul times as long and m_mul times as high as the one before.

    Loshchilov & Hutter 2016, arXiv:1608.03983.

    >>> [round(float(CosineDecayRestarts(0.1, 10)(t)), 3) for t in (5, 10, 20)]
    [0.05, 0.1, 0.05]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        first_decay_steps: int,
        t_mul: float = 2.0,
        m_mul: float = 1.0,
        alpha: float = 0.0,
        name: str | None = None,
    ):
        self.initial_learning_rate, self.first_decay_steps = initial_learning_rate, first_decay_steps
        self.t_mul, self.m_mul, self.alpha, self.name = t_mul, m_mul, alpha, name

    def core(self):
        return core.cosine_restarts_schedule(
            self.initial_learning_rate, self.first_decay_steps, self.t_mul, self.m_mul, self.alpha
        )


MODULE = "keras.optimizers.schedules"
_CLASSES: dict[str, type[LearningRateSchedule]] = {
    c.__name__: c
    for c in (
        CosineDecay,
        CosineDecayRestarts,
        ExponentialDecay,
        InverseTimeDecay,
        PiecewiseConstantDecay,
        PolynomialDecay,
    )
}


def serialize(schedule: LearningRateSchedule) -> dict[str, Any]:
    """Returns a schedule as plain JSON, in Keras's format: module, class_name, config, registered_name."""
    kind, config = type(schedule), schedule.get_config()
    if kind.__name__ in _CLASSES:
        return {"module": MODULE, "class_name": kind.__name__, "config": config, "registered_name": None}
    return {"module": None, "class_name": kind.__name__, "config": config, "registered_name": kind.__name__}


def deserialize(config: dict[str, Any], custom_objects: dict[str, type] | None = None) -> LearningRateSchedule:
    """Returns the schedule that `serialize` described. Also reads the older `{class_name, config}` format.

    Raises ValueError for a class that is neither Keras's nor in `custom_objects`, a dict by name; TypeError or
    ValueError, naming the entry, for a config that the class does not accept.

    >>> rate = deserialize(serialize(ExponentialDecay(0.1, 10, 0.5)))
    >>> type(rate).__name__, rate.decay_steps
    ('ExponentialDecay', 10)
    """
    known = _CLASSES | (custom_objects or {})
    given = config.get("class_name") if isinstance(config, dict) else ""
    name, cls, inner = (
        class_of(config, known, "a learning-rate schedule") if isinstance(given, str) else ("", None, {})
    )
    if cls is None:
        raise ValueError(f"Unknown learning-rate schedule {short(given)}; known are {sorted(known)}")
    with within(name):
        schedule = cls.from_config(as_arguments(cls, inner))
        if _CLASSES.get(name) is cls:
            schedule.core()  # the core's constructor checks the numbers
        return schedule
