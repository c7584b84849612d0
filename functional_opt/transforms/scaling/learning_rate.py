"""scale, scale_by_schedule, scale_by_learning_rate: multiply the updates by a number."""

import dataclasses
from typing import Annotated, Any, NamedTuple

import jax

from ...core import kernels
from ...core.checks import Static
from ...core.leaves import Tree, map_leaves
from ...core.ranges import Convert, Real
from ...core.schedule import Rate, Schedule, to_schedule
from ...core.slots import Counter
from ...core.transformation import EmptyState, GradientTransformation, increment, transformation, zero_count

ScaleState = EmptyState
"""Optax's name for the state, for older scripts."""


class ScaleByScheduleState(NamedTuple):
    """`count`: steps done, int32, shape ()."""

    count: Counter


@transformation
class scale(GradientTransformation):
    """Multiplies the updates by a number: u = step_size · g.

    Args:
        step_size: the factor, of any sign.

    >>> scale(-0.5).update({"w": 2.0}, EmptyState())[0]["w"].item()
    -1.0
    """

    step_size: Real

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        return _times(updates, self.step_size, params), state

    def as_kernel(self, state, params):
        return (kernels.KernelOp("scale", (self.step_size,)),)


@transformation
class scale_by_schedule(GradientTransformation):
    """Multiplies the updates by a schedule: u = f(count) · g, where count is the number of steps done before.

    Args:
        step_size_fn: a schedule, or any function of the count.

    >>> tx = scale_by_schedule(lambda count: 1 / (1 + count))
    >>> _, state = tx.update({"w": 1.0}, tx.init({"w": 1.0}))
    >>> tx.update({"w": 1.0}, state)[0]["w"].item()
    0.5
    """

    step_size_fn: Annotated[Any, Convert(to_schedule, "schedule")]

    def init(self, params):
        return ScaleByScheduleState(zero_count())

    def update(self, updates, state, params=None, **extra):
        return _times(updates, self.step_size_fn(state.count), params), ScaleByScheduleState(increment(state.count))

    def as_kernel(self, state, params):
        return (kernels.KernelOp("scale", (self.step_size_fn(state.count),)),)


@transformation
class scale_by_learning_rate(GradientTransformation):
    """Turns a direction into a step downhill: u = −learning_rate · g. It is the last link of most chains.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; None for 1.
        flip_sign: whether to multiply by −1, so that adding the updates descends.

    Raises ValueError for a negative rate.

    >>> scale_by_learning_rate(0.1).update({"w": 1.0}, EmptyState())[0]["w"].round(3)
    Array(-0.1, dtype=float32)
    """

    learning_rate: Rate | None
    flip_sign: Static[bool] = True

    def init(self, params):
        return ScaleByScheduleState(zero_count()) if isinstance(self.learning_rate, Schedule) else EmptyState()

    def update(self, updates, state, params=None, **extra):
        rate, state = rate_now(self.learning_rate, state)
        rate = 1.0 if rate is None else rate
        return _times(updates, -rate if self.flip_sign else rate, params), state

    def as_kernel(self, state, params):
        rate, _ = rate_now(self.learning_rate, state)
        rate = 1.0 if rate is None else rate
        return (kernels.KernelOp("scale", (-rate if self.flip_sign else rate,)),)


def rate_now(rate: Any, state: Any) -> tuple[Any, Any]:
    """Returns the value of a number or schedule at this step, and the state for the next one."""
    if isinstance(rate, Schedule):
        return rate(state.count), ScaleByScheduleState(increment(state.count))
    return rate, state


def _times(updates: Tree, factor: Any, params: Tree) -> Tree:
    return map_leaves(lambda g: factor * g, updates, params=params)


def learning_rates(tx: GradientTransformation) -> list[Rate]:
    """Returns the rates of all `scale_by_learning_rate` links in a transformation."""
    return [x.learning_rate for x in jax.tree.leaves(tx, is_leaf=_has_rate) if _has_rate(x)]


def with_learning_rate(tx: GradientTransformation, learning_rate: Rate) -> GradientTransformation:
    """Returns the transformation with another rate in these links."""
    renew = lambda x: dataclasses.replace(x, learning_rate=learning_rate) if _has_rate(x) else x  # noqa: E731
    return jax.tree.map(renew, tx, is_leaf=_has_rate)


def _has_rate(x: Any) -> bool:
    return isinstance(x, scale_by_learning_rate) and x.learning_rate is not None
