"""Schedules made of pieces or of others: piecewise, joined, in proportion, with a warm-up, with cycles."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.ranges import Convert, Count, Fraction, Integer, Limit, Positive, PositiveInt, Range, Real, described
from ..core.schedule import Rate, Schedule, constant, elapsed, half_cosine, is_concrete, rate_at, to_schedule
from ..core.value import value
from .decay import constant_schedule, cosine_decay_schedule, exponential_decay, linear_schedule


def _pieces(name: str, x: Any) -> tuple:
    """Returns `{step: scale}` as ordered pairs, so that steps are leaves too: JAX holds dict keys as structure."""
    try:
        pairs = [(step, scale) for step, scale in (x.items() if isinstance(x, Mapping) else x)]
    except (TypeError, ValueError) as e:
        raise TypeError(f"{name} must be a dict {{step: scale}}, got {x!r}") from e
    steps = [Integer("[0, inf)").check(f"a step in {name}", step) for step, _ in pairs]
    scales = [Range("[0, inf)").check(f"{name}[{step}]", scale) for step, scale in pairs]
    pairs = list(zip(steps, scales, strict=True))
    return tuple(sorted(pairs, key=lambda pair: pair[0]) if is_concrete(*(step for step, _ in pairs)) else pairs)


Pieces = Annotated[Any, Convert(_pieces, "{step: scale}")]
"""`{step: scale}`, in any order, with scales ≥ 0; or pairs `(step, scale)`, the form in which it is stored."""


@value
class piecewise_constant_schedule(Schedule):
    """A step function: `init` times the scales of all steps that have been reached, `t >= step`.

    >>> schedule = piecewise_constant_schedule(1.0, {2: 0.5, 4: 0.5})
    >>> print(schedule(jnp.arange(6)))
    [1.   1.   0.5  0.5  0.25 0.25]
    >>> schedule
    piecewise_constant_schedule(1.0, boundaries_and_scales=((2, 0.5), (4, 0.5)))
    """

    init_value: Real
    boundaries_and_scales: Pieces | None = None

    def __call__(self, count):
        v = constant(count, self.init_value)
        for step, scale in self.boundaries_and_scales or ():
            v = v * jnp.where(count < step, 1.0, scale)
        return v


@value
class piecewise_interpolate_schedule(Schedule):
    """Straight lines or half cosines between the values of `piecewise_constant_schedule` at 0 and at each step.

    >>> print(piecewise_interpolate_schedule("linear", 1.0, {2: 0.5, 4: 0.5})(jnp.arange(6)))
    [1.    0.75  0.5   0.375 0.25  0.25 ]
    """

    interpolate_type: Static[Literal["linear", "cosine"]]
    init_value: Real
    boundaries_and_scales: Pieces | None = None

    def __call__(self, count):
        start, begin, v = self.init_value, 0, constant(count, self.init_value)
        for step, scale in self.boundaries_and_scales or ():
            end, x = start * scale, elapsed(count, begin) / jnp.maximum(step - begin, 1)
            if self.interpolate_type == "linear":
                piece = start + (end - start) * x
            else:
                piece = end + (start - end) * half_cosine(jnp.pi * x)
            v = jnp.where(count < begin, v, piece)
            start, begin = end, step
        return jnp.where(count < begin, v, start)


@value
class join_schedules(Schedule):
    """Runs schedules one after the other; each counts from its own boundary.

    `boundaries`: the steps at which the second, third ... schedule starts, in ascending order, one fewer than
    `schedules`; raises ValueError otherwise. Optax does not check this.

    >>> schedule = join_schedules([linear_schedule(0.0, 1.0, 2), exponential_decay(1.0, 1, 0.5)], [2])
    >>> print(schedule(jnp.arange(5)))
    [0.   0.5  1.   0.5  0.25]
    """

    schedules: tuple
    boundaries: tuple

    def __init__(self, schedules: Sequence[Callable[[Any], Any]], boundaries: Sequence[int]):
        for name, x in (("schedules", schedules), ("boundaries", boundaries)):
            if not isinstance(x, Iterable):
                raise TypeError(f"{name} must be a list, got {described(x)}")
        schedules = tuple(to_schedule(f"schedules[{i}]", s) for i, s in enumerate(schedules))
        boundaries = tuple(Integer("[0, inf)").check(f"boundaries[{i}]", b) for i, b in enumerate(boundaries))
        if not schedules:
            raise ValueError("schedules must have at least one schedule, got none")
        if len(boundaries) != len(schedules) - 1:
            raise ValueError(f"{len(schedules)} schedules need {len(schedules) - 1} boundaries, got {boundaries}")
        if is_concrete(*boundaries) and list(boundaries) != sorted(boundaries):
            raise ValueError(f"boundaries must be in order, got {boundaries}")
        object.__setattr__(self, "schedules", schedules)
        object.__setattr__(self, "boundaries", boundaries)

    def __call__(self, count):
        v = self.schedules[0](count)
        for boundary, schedule in zip(self.boundaries, self.schedules[1:], strict=True):
            v = jnp.where(count < boundary, v, schedule(jnp.maximum(count - boundary, 0)))
        return v


@value
class proportional_schedule(Schedule):
    """A value that follows another schedule: `value · schedule(t) / peak_value`.

    Corrected weight decay is such a value, of the learning rate's schedule (see `adamc`), and so is the lookahead of
    `ema_nesterov`.

    >>> rate = linear_schedule(0.02, 0.0, 4)
    >>> print(proportional_schedule(0.1, rate, 0.02)(jnp.arange(5)).round(3))
    [0.1   0.075 0.05  0.025 0.   ]
    """

    value: Real
    schedule: Rate
    peak_value: Positive

    def __call__(self, count):
        return constant(count, self.value) * (rate_at(self.schedule, count) / self.peak_value)


@checked
def warmup_constant_schedule(init_value: Real, peak_value: Real, warmup_steps: Count) -> join_schedules:
    """Returns a linear warm-up, then a constant. With 0 steps it starts at `peak_value`; Optax stays at `init_value`.

    >>> print(warmup_constant_schedule(0.0, 1.0, 2)(jnp.arange(4)))
    [0.  0.5 1.  1. ]
    """
    return _warmup(init_value, peak_value, warmup_steps, constant_schedule(peak_value))


@checked
def warmup_cosine_decay_schedule(
    init_value: Real,
    peak_value: Real,
    warmup_steps: Count,
    decay_steps: PositiveInt,
    end_value: Real = 0.0,
    exponent: Positive = 1.0,
) -> join_schedules:
    """Returns a linear warm-up, then a cosine decay. `decay_steps`, the total length, must exceed `warmup_steps`.

    >>> print(warmup_cosine_decay_schedule(0.0, 100.0, 2, 5)(jnp.arange(6)).round())
    [  0.  50. 100.  75.  25.   0.]
    """
    steps = decay_steps - warmup_steps
    if is_concrete(steps) and steps <= 0:
        raise ValueError(f"decay_steps must be greater than warmup_steps={warmup_steps}, got {decay_steps}")
    if is_concrete(peak_value):
        alpha = end_value / peak_value if peak_value else 0.0
    else:
        alpha = jnp.where(peak_value == 0, 0.0, end_value / jnp.where(peak_value == 0, 1.0, peak_value))
    decay = cosine_decay_schedule(peak_value, steps, alpha, exponent)
    return _warmup(init_value, peak_value, warmup_steps, decay)


@checked
def warmup_exponential_decay_schedule(
    init_value: Real,
    peak_value: Real,
    warmup_steps: Count,
    transition_steps: PositiveInt,
    decay_rate: Positive,
    transition_begin: Count = 0,
    staircase: bool = False,
    end_value: Limit | None = None,
) -> join_schedules:
    """Returns a linear warm-up, then `exponential_decay`; `transition_begin` counts from the end of the warm-up.

    >>> print(warmup_exponential_decay_schedule(0.0, 1.0, 2, 1, 0.5)(jnp.arange(5)))
    [0.   0.5  1.   0.5  0.25]
    """
    decay = exponential_decay(peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value)
    return _warmup(init_value, peak_value, warmup_steps, decay)


def _warmup(init_value: Any, peak_value: Any, warmup_steps: Any, then: Schedule) -> join_schedules:
    steps: Any = max(warmup_steps, 1) if is_concrete(warmup_steps) else jnp.maximum(warmup_steps, 1)
    return join_schedules((linear_schedule(init_value, peak_value, steps), then), (warmup_steps,))


@checked
def linear_onecycle_schedule(
    transition_steps: PositiveInt,
    peak_value: Real,
    pct_start: Fraction = 0.3,
    pct_final: Fraction = 0.85,
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
) -> piecewise_interpolate_schedule:
    """Returns one cycle of straight lines: `peak / div` up to `peak`, back down, and on to `peak / div / final_div`.

    `pct_start`, `pct_final`: fractions of the steps, in [0, 1], at which the first and the second line end.
    Smith & Topin 2017, arXiv:1708.07120. Differs from Optax if two lines end at the same step: Optax drops one.

    >>> print(linear_onecycle_schedule(10, 1.0, 0.4, 0.8, div_factor=4.0, final_div_factor=4.0)(jnp.arange(0, 12, 2)))
    [0.25   0.625  1.     0.625  0.25   0.0625]
    """
    if is_concrete(pct_start, pct_final) and pct_start > pct_final:
        raise ValueError(f"pct_final must be at least pct_start={pct_start}, got {pct_final}")
    up, down = _whole(pct_start * transition_steps), _whole(pct_final * transition_steps)
    pieces = ((up, div_factor), (down, 1.0 / div_factor), (transition_steps, 1.0 / final_div_factor))
    return piecewise_interpolate_schedule("linear", peak_value / div_factor, pieces)


@checked
def cosine_onecycle_schedule(
    transition_steps: PositiveInt,
    peak_value: Real,
    pct_start: Fraction = 0.3,
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
) -> piecewise_interpolate_schedule:
    """Returns one cycle of half cosines: `peak / div` up to `peak`, then down to `peak / div / final_div`.

    `pct_start`: the fraction of the steps, in [0, 1], that rise. Smith & Topin 2017, arXiv:1708.07120.

    >>> print(cosine_onecycle_schedule(10, 1.0, 0.4, div_factor=4.0, final_div_factor=4.0)(jnp.array([0, 2, 4, 10])))
    [0.25   0.625  1.     0.0625]
    """
    pieces = (
        (_whole(pct_start * transition_steps), div_factor),
        (transition_steps, 1.0 / (div_factor * final_div_factor)),
    )
    return piecewise_interpolate_schedule("cosine", peak_value / div_factor, pieces)


def _whole(x: Any) -> Any:
    return int(x) if is_concrete(x) else jnp.floor(x)


def sgdr_schedule(cosine_kwargs: Iterable[Mapping[str, Any]]) -> join_schedules:
    """Returns warm-ups and cosine decays in sequence: a `warmup_cosine_decay_schedule` for each dict of arguments.

    Loshchilov & Hutter 2017, arXiv:1608.03983.

    >>> cycle = {"init_value": 0.0, "peak_value": 100.0, "warmup_steps": 1, "decay_steps": 3}
    >>> print(sgdr_schedule([cycle, cycle | {"decay_steps": 4}])(jnp.arange(8)).round())
    [  0. 100.  50.   0. 100.  75.  25.   0.]
    """
    cycles = list(cosine_kwargs)
    schedules = [warmup_cosine_decay_schedule(**cycle) for cycle in cycles]
    return join_schedules(schedules, list(itertools.accumulate(cycle["decay_steps"] for cycle in cycles))[:-1])
