"""Schedules: functions of the step count, and values too, so that their numbers can be traced.

A schedule sees the count before it is incremented: 0 at the first step. Wherever one is taken, a plain
function of the count is too; it is held as structure, so a new function means a new compilation.
"""

from collections.abc import Callable
from typing import Annotated, Any

import jax

from .value import Convert, Range, Scalar, static, value


class Schedule:
    """A function of the step count (int32, shape ()), or of many at once: `(n,)` counts give `(n,)` values."""

    def __call__(self, count: Any) -> jax.Array:
        raise NotImplementedError


@value
class _Function(Schedule):
    fn: Callable = static()

    def __call__(self, count):
        return self.fn(count)

    def __repr__(self):
        return getattr(self.fn, "__qualname__", repr(self.fn))


def as_schedule(name: str, x: Any) -> Any:
    """A number or a schedule as it is, a plain function as a schedule."""
    return _Function(x) if callable(x) and not isinstance(x, Schedule | jax.Array) else x


def _rate(name: str, x: Any) -> Any:
    if isinstance(x, type):
        raise TypeError(f"{name} must be a number or a schedule, got the class {x.__name__}; call it first")
    if isinstance(x, str):
        raise TypeError(f"{name} must be a number, a schedule or a function of the step, got {x!r} (str)")
    x = as_schedule(name, x)
    return x if isinstance(x, Schedule) else Range("[0, inf]").check(name, x)


Rate = Annotated[Scalar | Callable[[Any], Any], Convert(_rate)]
"""A number ≥ 0, a schedule, or a function of the step count."""
