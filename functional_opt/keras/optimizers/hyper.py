"""Hyperparameters: numbers, arrays, variables, schedules and callables, assignable at any time."""

import inspect
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from ...core.ranges import Range, described, number
from ...core.schedule import Schedule, as_schedule, returned_number
from ..engine.step import ScheduledValue
from ..variables import recording
from ..variables.recording import Cell
from ..variables.variable import Variable
from .schedules import LearningRateSchedule, serialize

T = TypeVar("T")
RANGES = {
    **{name: Range("[0, inf)") for name in ("learning_rate", "decay")},
    **{name: Range("[0, 1)") for name in ("beta_1", "beta_2", "rho")},
    "momentum": Range("[0, 1]"),
}
"""The range of each hyperparameter by name, in every class."""
ANY = Range("(-inf, inf)")


class Hyperparameters:
    """Gives a class hyperparameters: numbers, schedules or callables, made by `_set_hyper`, set as attributes.

    A number is kept in a float32 `Variable`, as Keras does, so that `opt.learning_rate.assign(x)` works too.
    """

    ranges: ClassVar[dict[str, Range]] = {}
    """The ranges of attributes that are numbers, and of hyperparameters whose range differs from that in RANGES."""

    _name: str
    _hyper: dict[str, Any]
    _traced_hyper: Cell
    """Holds the hyperparameters of the present step while code of the user's is traced, else None."""

    @property
    def _iterations(self) -> Variable:
        """The count of steps, which schedules follow."""
        raise NotImplementedError

    def _set_hyper(self, name: str, x: Any) -> None:
        """Makes or reassigns a hyperparameter.

        Raises TypeError for a string, a bool, a complex number, an array that is not a scalar, or a class; ValueError
        for an infinite number or NaN, a negative learning rate or decay, or a decay of a running mean outside [0, 1).
        """
        if isinstance(x, type):
            raise TypeError(f"{name} must be a number, a schedule or a callable, got the class {x.__name__}; call it")
        if not callable(x):
            x = as_array(x)
            if number(x) is NotImplemented:
                raise TypeError(f"{name} must be a number, a schedule or a callable, got {described(x)}")
            if name in ("learning_rate", "decay"):
                not_negative(name, x)
            (type(self).ranges.get(name) or RANGES.get(name, ANY)).check(name, x)
        elif not isinstance(x, LearningRateSchedule | Schedule) and not _takes_nothing(x):
            as_schedule(name, x)  # raises TypeError for a function of anything but the step
        known = self.__dict__.setdefault("_hyper", {})
        if callable(x) or isinstance(x, Variable):
            known[name] = x
        elif isinstance(known.get(name), Variable):
            known[name].assign(x)
        else:
            known[name] = Variable(x, trainable=False, dtype=jnp.float32, name=f"{self._name}/{name}")

    def _get_hyper(self, name: str, dtype: Any = None) -> Any:
        """Returns a schedule as it is (its value while a step is traced), and anything else as its present value."""
        if (traced := self._traced_hyper._value) is not None:
            x = traced[name]
            return x if dtype is None else jnp.asarray(x, dtype)
        x = self._hyper[name]
        if isinstance(x, LearningRateSchedule | Schedule):
            return x
        x = present(x)
        return x if dtype is None else jnp.asarray(x, dtype)

    def _serialize_hyperparameter(self, name: str) -> Any:
        """Returns a hyperparameter as plain JSON: a number, or the config of a schedule."""
        x = self._hyper[name]
        if isinstance(x, LearningRateSchedule):
            return serialize(x)
        if isinstance(x, Schedule) or callable(x) and not _takes_nothing(x):
            raise TypeError(
                f"{name} is {x!r}; a config takes a schedule of functional_opt.keras.optimizers.schedules"
            )
        # the shortest number that rounds to this float32: 0.01, not 0.009999999776482582
        return float(np.format_float_scientific(np.float32(self._get_hyper(name))))

    def _made_of_hyper(self, make: Callable[[dict[str, Any]], T], key: Any = "step", **others: Any) -> T:
        """Returns `make(hyper)`, a tree of numbers made of the present hyperparameters by name, some by `others`.

        In a compiled program the numbers are inputs, so that it sees what is assigned later: the hyperparameters that
        are variables, what callables return, and numbers that are plain attributes.
        """
        traced = self._traced_hyper._value

        def outside() -> tuple[dict[str, Any], T]:
            hyper = {name: self._present(x, ahead) for name, x in self._hyper.items()}
            return hyper, make(hyper | dict.fromkeys(others, np.float32(0.0)))  # they may be tracers

        ahead = recording.steps_ahead(self._iterations)
        given = recording.lift(self._traced_hyper, (key, ahead), outside)
        if given is None:
            hyper = traced if traced is not None else {n: self._present(x, ahead) for n, x in self._hyper.items()}
            return make(hyper | others)
        hyper, known = given
        if traced is None:  # what the program assigns itself is not known outside
            here = {n: x for n, x in self._hyper.items() if isinstance(x, Variable) and recording.is_assigned(x)}
            traced = hyper | {n: self._present(x) for n, x in here.items()}
        leaves, treedef = jax.tree.flatten(make(traced | others))
        inputs = treedef.flatten_up_to(known)
        return treedef.unflatten(
            [x if isinstance(x, core.Tracer) else y for x, y in zip(leaves, inputs, strict=True)]
        )

    def _present(self, x: Any, ahead: int = 0) -> Any:
        """Returns the value of a hyperparameter to compute with; of a schedule that cannot be traced, the number."""
        value = present(x)
        if not isinstance(value, ScheduledValue) or _is_traceable(x, value):
            return value
        count = self._iterations._value
        if isinstance(count, core.Tracer):
            raise RuntimeError(
                f"the schedule {x!r} branches in Python on the step, which is not known inside of jax.jit. Take the "
                "step eagerly, or in keras.function or make_train_step; or write the schedule with jnp.where"
            )
        return jnp.asarray(value(self._updates_done(count + ahead)), jnp.float32)

    def _updates_done(self, count: Any) -> Any:
        """Returns the number of updates among the steps taken: less than that of steps if several make an update."""
        return count

    def __getattr__(self, name: str) -> Any:
        name = "learning_rate" if name == "lr" else name
        if name not in self.__dict__.get("_hyper", {}):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        x = self._hyper[name]
        if isinstance(x, Variable | LearningRateSchedule | Schedule) or not _takes_nothing(x):
            return x
        traced = self._traced_hyper._value
        return x() if traced is None else traced[name]  # as in Keras: a function's present value

    def __setattr__(self, name: str, x: Any) -> None:
        name = "learning_rate" if name == "lr" else name
        if name in self.__dict__.get("_hyper", {}):
            self._set_hyper(name, x)
            return
        if name in type(self).ranges:
            x = type(self).ranges[name].check(name, as_array(x))
        object.__setattr__(self, name, x)

    def __dir__(self):
        return [*super().__dir__(), *self._hyper, "lr"]


def present(x: Any) -> Any:
    """Returns the value to compute with: a float32 array, or a core schedule if it depends on the step."""
    if isinstance(x, Variable):
        return x.value if x.dtype == jnp.float32 else x.value.astype(jnp.float32)
    if isinstance(x, LearningRateSchedule):
        # numbers in a schedule are float32 too, as in Keras, even for float64 variables
        return ScheduledValue(jax.tree.map(lambda n: np.float32(n) if isinstance(n, float) else n, x.core()))
    if isinstance(x, Schedule):
        return ScheduledValue(x)
    if _takes_nothing(x):
        return jnp.asarray(returned_number(f"the function {x!r}", x()), jnp.float32)
    return ScheduledValue(as_schedule("a callable hyperparameter", x))


_traceable: "weakref.WeakKeyDictionary[Any, bool]" = weakref.WeakKeyDictionary()


def _is_traceable(x: Any, schedule: ScheduledValue) -> bool:
    """Returns whether a schedule can be traced; if not, it is Python code that needs to know the step."""
    if (
        isinstance(x, Schedule)
        or isinstance(x, LearningRateSchedule)
        and type(x).core is not LearningRateSchedule.core
    ):
        return True
    if (known := _traceable.get(x)) is not None:
        return known
    try:
        jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32))
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        known = False
    _traceable[x] = known is not False
    return known is not False


def _takes_nothing(fn: Callable) -> bool:
    """Returns whether `fn` is called without arguments, as Keras does; if not, it takes the step."""
    try:
        inspect.signature(fn).bind()
    except TypeError:
        return False
    return True


def not_negative(name: str, x: Any) -> None:
    """Raises TypeError for a value that is not a number, ValueError if it is negative. None and callables pass."""
    if x is None or callable(x):
        return
    known = number(as_array(x))
    if known is NotImplemented:
        raise TypeError(f"{name} must be a number, got {described(x)}")
    if known is not None and not known >= 0:
        raise ValueError(f"Expected {name} >= 0, received: {x if abs(known) < 2**128 else described(known)}")
    Range("[0, inf]").check(name, x if known is None else known)


def as_array(x: Any) -> Any:
    """Returns another library's tensor as a NumPy array, and anything else as it is."""
    ours = isinstance(x, Variable | jax.Array | np.ndarray | np.generic)
    return np.asarray(x) if not ours and hasattr(x, "__array__") else x
