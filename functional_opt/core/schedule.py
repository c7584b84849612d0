"""Schedule, annotations for arguments that take one, and arithmetic that several schedules share."""

import inspect
import numbers
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from .checks import Static
from .ranges import Convert, Range, Scalar, described, number, unread
from .value import value


class Schedule:
    """A function of the step count (int32, shape ()), or of an array of counts: shape `(n,)` gives `(n,)` values."""

    def __call__(self, count: Any) -> jax.Array:
        raise NotImplementedError


@value
class _Function(Schedule):
    fn: Static[Callable]

    def __call__(self, count):  # a NumPy count, as in a restored state, would make NumPy do the arithmetic
        try:
            x = self.fn(jnp.asarray(count) if isinstance(count, np.ndarray | np.generic) else count)
        except jax.errors.ConcretizationTypeError as e:
            e.add_note(
                f"The schedule {self!r} decides in Python by the step count, which is traced here. Write "
                "jnp.where(count < 10, a, b), or use join_schedules or piecewise_constant_schedule."
            )
            raise
        return returned_number(f"the schedule {self!r}", x, np.shape(count))

    def __repr__(self):
        return getattr(self.fn, "__qualname__", repr(self.fn))


def as_schedule(name: str, x: Any) -> Any:
    """Returns a number or a schedule as it is, and wraps a plain function in a schedule.

    Raises TypeError for a function that cannot be called with the step count alone.
    """
    if not callable(x) or isinstance(x, Schedule | jax.Array):
        return x
    try:
        inspect.signature(x).bind(0)
    except TypeError as e:
        wanted = f"{name} must be a function of the step count alone, as lambda count: 0.1"
        raise TypeError(f"{wanted}; {x!r}: {e}") from e
    except ValueError:  # a callable that does not say what it takes
        pass
    return _Function(x)


def to_schedule(name: str, x: Any) -> Schedule:
    """Returns a schedule as it is, and wraps a plain function in one; raises TypeError for anything else."""
    if isinstance(x, type) or not callable(x):
        raise TypeError(f"{name} must be a schedule or a function of the step, got {described(x)}")
    return as_schedule(name, x)


def returned_number(who: str, x: Any, shape: tuple[int, ...] = ()) -> Any:
    """Returns what a function returned if it is a number, or an array of a shape; raises TypeError otherwise.

    >>> returned_number("f", 0.1), returned_number("f", None)
    Traceback (most recent call last):
    TypeError: f must return a number, got None (NoneType)
    """
    if type(x) is float or np.shape(x) == shape != () and hasattr(x, "dtype"):
        return x
    if unread(lambda: number(x)) is NotImplemented:
        raise TypeError(f"{who} must return a number, got {described(x)}")
    return x


class OrSchedule(Convert):
    """Annotates a number in a range, a schedule or a function of the step count: `OrSchedule(Range("[0, 1]"))`."""

    def __init__(self, numbers: Range):
        self.numbers = numbers
        words = f"{numbers.interval}, a schedule or a function of the step"

        def check(name: str, x: Any) -> Any:
            if isinstance(x, type):
                raise TypeError(f"{name} must be a number or a schedule, got the class {x.__name__}; call it first")
            if callable(x) and not isinstance(x, jax.Array):
                return as_schedule(name, x)
            if number(x) is NotImplemented:
                raise TypeError(f"{name} must be a {numbers.kind} in {words}, got {described(x)}")
            return numbers.check(name, x)

        super().__init__(check, f"{numbers!r}{words.removeprefix(numbers.interval)}")


Rate = Annotated[Scalar | Callable[[Any], Any], OrSchedule(Range("[0, inf)"))]
"""A number ≥ 0, a schedule, or a function of the step count."""


ScalarOrSchedule = Scalar | Callable[[Any], Any]
"""Optax's name for a number or a function of the step count, for annotations."""


def rate_at(rate: Any, count: Any) -> Any:
    """Returns the value of a `Rate` at a step: a number as it is, a schedule evaluated at the count."""
    return rate(count) if isinstance(rate, Schedule) else rate


def is_concrete(*xs: Any) -> bool:
    """Returns whether all are Python or NumPy numbers, whose values are known; an array may be traced."""
    return all(isinstance(x, numbers.Real) for x in xs)


def elapsed(count: Any, begin: Any = 0) -> jax.Array:
    """Returns the steps since `begin`, at least 0, as a float. Integers are subtracted before they are rounded."""
    return jnp.maximum(jnp.asarray(count) - begin, 0).astype(float)


def progress(t: jax.Array, steps: Any) -> jax.Array:
    """Returns `min(t / steps, 1)`, exactly 1 from the last step on although XLA may compute `t * (1 / steps)`."""
    return jnp.where(t < steps, t / steps, 1.0)


def periods(count: Any, begin: Any, steps: Any, staircase: bool) -> jax.Array:
    """Returns how many times `steps` have passed since `begin`; with `staircase`, by integer division."""
    if staircase:
        return (jnp.maximum(jnp.asarray(count) - begin, 0) // steps).astype(float)
    return elapsed(count, begin) / steps


def power(x: jax.Array, p: Any) -> jax.Array:
    """Returns `x ** p` for x ≥ 0 and p > 0, with derivative 0 at x = 0, where it would be infinite for p < 1."""
    return jnp.where(x > 0, jnp.where(x > 0, x, 1.0) ** p, 0.0)


def half_cosine(angle: jax.Array) -> jax.Array:
    """Returns half a cosine, which falls from 1 at 0 to 0 at π."""
    return 0.5 * (1 + jnp.cos(angle))


def constant(count: Any, x: Any) -> jax.Array:
    return jnp.full(jnp.shape(count), x, float)
