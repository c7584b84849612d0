"""Schedules: functions of the step count, and values too, so that their numbers can be traced.

A schedule sees the count before it is incremented: 0 at the first step. Wherever one is taken, a plain
function of the count is too; it is held as structure, so a new function means a new compilation.

Names and arguments are Optax's, and so are the numbers. In all of them

- `t` is the count: whole and not negative, a number or an array of any shape, which the result then has;
- `..._steps`, `transition_begin` and boundaries are in steps, `..._value` is in units of the result;
- the result is float32 (float64 under x64), and past its last step a schedule stays where it is;
- no steps (`transition_steps=0`), negative steps, and numbers out of range raise ValueError, what is no
  number TypeError. Optax takes most of them, and stays at the initial value. Steps of a warm-up may be 0.

Steps are leaves like any number: to differentiate with respect to them, give them as floats (`100.0`).

>>> decays = jax.tree.map(lambda *x: jnp.stack(x), cosine_decay_schedule(0.1, 100), cosine_decay_schedule(0.2, 50))
>>> print(jax.vmap(lambda schedule: schedule(25))(decays).round(3))
[0.085 0.1  ]
"""

import itertools
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from .value import (
    Convert,
    Count,
    Fraction,
    Integer,
    NonNegative,
    Positive,
    PositiveInt,
    Range,
    Real,
    Scalar,
    Static,
    checked,
    value,
)


class Schedule:
    """A function of the step count (int32, shape ()), or of many at once: `(n,)` counts give `(n,)` values."""

    def __call__(self, count: Any) -> jax.Array:
        raise NotImplementedError


@value
class _Function(Schedule):
    fn: Static[Callable]

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


def _known(*xs: Any) -> bool:
    """Whether all are numbers of Python or NumPy, whose value can be looked at: no arrays, which may be traced."""
    return all(isinstance(x, numbers.Real) for x in xs)


def _since(count: Any, begin: Any = 0) -> jax.Array:
    """Steps since `begin`, at least 0, as a float. Whole numbers are subtracted first: none is rounded."""
    return jnp.maximum(jnp.asarray(count) - begin, 0).astype(float)


def _share(t: jax.Array, steps: Any) -> jax.Array:
    """`min(t / steps, 1)`, and 1 exactly from the last step on: XLA may compute `t * (1 / steps)`."""
    return jnp.where(t < steps, t / steps, 1.0)


def _periods(count: Any, begin: Any, steps: Any, staircase: bool) -> jax.Array:
    """How many times `steps` have passed since `begin`; with `staircase` divided as whole numbers."""
    if staircase:
        return (jnp.maximum(jnp.asarray(count) - begin, 0) // steps).astype(float)
    return _since(count, begin) / steps


def _power(x: jax.Array, p: Any) -> jax.Array:
    """`x ** p` for x ≥ 0 and p > 0, its derivative 0 at x = 0, where it is infinite for p < 1."""
    return jnp.where(x > 0, jnp.where(x > 0, x, 1.0) ** p, 0.0)


def _half_cosine(angle: jax.Array) -> jax.Array:
    """From 1 at 0 down to 0 at π."""
    return 0.5 * (1 + jnp.cos(angle))


def _constant(count: Any, x: Any) -> jax.Array:
    return jnp.full(jnp.shape(count), x, float)


@value
class constant_schedule(Schedule):
    """The same value at every step.

    >>> constant_schedule(0.5)(jnp.arange(2)).tolist()
    [0.5, 0.5]
    """

    value: Real

    def __call__(self, count):
        return _constant(count, self.value)


@value
class polynomial_schedule(Schedule):
    """From one value to another along a power: `end + (init - end) (1 - x)^power`, x = (t - begin) / steps in [0, 1].

    `power` > 0. Optax takes 0 too, which is constant.

    >>> print(polynomial_schedule(1.0, 0.0, power=2, transition_steps=4)(jnp.arange(6)))
    [1.     0.5625 0.25   0.0625 0.     0.    ]
    """

    init_value: Real
    end_value: Real
    power: Positive
    transition_steps: PositiveInt
    transition_begin: Count = 0

    def __call__(self, count):
        x = _share(_since(count, self.transition_begin), self.transition_steps)
        return (self.init_value - self.end_value) * _power(1 - x, self.power) + self.end_value


def linear_schedule(
    init_value: Scalar, end_value: Scalar, transition_steps: int, transition_begin: int = 0
) -> polynomial_schedule:
    """From one value to another in a straight line: `polynomial_schedule` of power 1.

    >>> linear_schedule(1.0, 0.0, 4)
    polynomial_schedule(1.0, 0.0, 1.0, 4)
    >>> print(linear_schedule(1.0, 0.0, 4)(jnp.arange(6)))
    [1.   0.75 0.5  0.25 0.   0.  ]
    """
    return polynomial_schedule(init_value, end_value, 1.0, transition_steps, transition_begin)


@value
class exponential_decay(Schedule):
    """A constant factor every so many steps: `init rate^p`, p = max(t - begin, 0) / steps.

    `decay_rate` > 0 (Optax: 0 means constant); `staircase` rounds p down, exactly at every count;
    `end_value` bounds the value from below if `decay_rate` < 1, else from above.

    >>> print(exponential_decay(1.0, 2, 0.25, end_value=0.1)(jnp.arange(5)))
    [1.    0.5   0.25  0.125 0.1  ]
    >>> print(exponential_decay(1.0, 2, 0.25, staircase=True)(jnp.arange(5)))
    [1.     1.     0.25   0.25   0.0625]
    """

    init_value: Real
    transition_steps: PositiveInt
    decay_rate: Positive
    transition_begin: Count = 0
    staircase: Static[bool] = False
    end_value: Real | None = None

    def __call__(self, count):
        p = _periods(count, self.transition_begin, self.transition_steps, self.staircase)
        decayed = self.init_value * self.decay_rate**p
        if self.end_value is None:
            return decayed
        ended = jnp.where(self.decay_rate < 1, decayed < self.end_value, decayed > self.end_value)
        # computed again without the steps past the end, whose powers overflow and would make gradients NaN
        return jnp.where(ended, self.end_value, self.init_value * self.decay_rate ** jnp.where(ended, 0.0, p))


@value
class inverse_time_decay(Schedule):
    """A harmonic decay: `init / (1 + rate p)`, p = max(t - begin, 0) / steps. Not in Optax.

    `decay_rate` ≥ 0; `staircase` rounds p down.

    >>> print(inverse_time_decay(1.0, 2, 1.0)(jnp.array([0, 2, 6])))
    [1.   0.5  0.25]
    """

    init_value: Real
    transition_steps: PositiveInt
    decay_rate: NonNegative
    transition_begin: Count = 0
    staircase: Static[bool] = False

    def __call__(self, count):
        p = _periods(count, self.transition_begin, self.transition_steps, self.staircase)
        return self.init_value / (1 + self.decay_rate * p)


@value
class inverse_sqrt_schedule(Schedule):
    """A linear warm-up from 0, then a decay as 1/√t: `peak min(t / w, √(w / t))`, w = warmup_steps. Not in Optax.

    `timescale` τ > 0, in steps (default: max(w, 1)), decays as `peak √(τ / (τ + t - w))` instead.
    Vaswani et al. 2017, arXiv:1706.03762, whose peak is 1 / √(d_model w); τ: Zhai et al. 2021, arXiv:2106.04560.

    >>> print(inverse_sqrt_schedule(1.0, 4)(jnp.array([0, 2, 4, 16])))
    [0.  0.5 1.  0.5]
    """

    peak_value: Real
    warmup_steps: Count
    timescale: Positive | None = None

    def __call__(self, count):
        w = jnp.maximum(self.warmup_steps, 1)
        scale = w if self.timescale is None else self.timescale
        decay = jnp.sqrt(scale / (scale + _since(count, self.warmup_steps)))
        return self.peak_value * jnp.where(count < self.warmup_steps, _since(count) / w, decay)


def _pieces(name: str, x: Any) -> tuple:
    """`{step: scale}` as pairs in order, whose steps are leaves too: JAX holds the keys of a dict as structure."""
    try:
        pairs = [(step, scale) for step, scale in (x.items() if isinstance(x, Mapping) else x)]
    except (TypeError, ValueError) as e:
        raise TypeError(f"{name} must be a dict {{step: scale}}, got {x!r}") from e
    for step, scale in pairs:
        Integer("[0, inf)").check(f"a step in {name}", step)
        Range("[0, inf]").check(f"{name}[{step}]", scale)
    return tuple(sorted(pairs, key=lambda pair: pair[0]) if _known(*(step for step, _ in pairs)) else pairs)


Pieces = Annotated[Any, Convert(_pieces)]
"""`{step: scale}`, in any order, scales ≥ 0; or pairs `(step, scale)`, which is how it is held."""


@value
class piecewise_constant_schedule(Schedule):
    """Steps: `init` times every scale whose step has come, `t >= step`.

    >>> schedule = piecewise_constant_schedule(1.0, {2: 0.5, 4: 0.5})
    >>> print(schedule(jnp.arange(6)))
    [1.   1.   0.5  0.5  0.25 0.25]
    >>> schedule
    piecewise_constant_schedule(1.0, boundaries_and_scales=((2, 0.5), (4, 0.5)))
    """

    init_value: Real
    boundaries_and_scales: Pieces | None = None

    def __call__(self, count):
        v = _constant(count, self.init_value)
        for step, scale in self.boundaries_and_scales or ():
            v = v * jnp.where(count < step, 1.0, scale)
        return v


@value
class piecewise_interpolate_schedule(Schedule):
    """The values of `piecewise_constant_schedule` at 0 and at each step, joined by straight lines or half cosines.

    >>> print(piecewise_interpolate_schedule("linear", 1.0, {2: 0.5, 4: 0.5})(jnp.arange(6)))
    [1.    0.75  0.5   0.375 0.25  0.25 ]
    """

    interpolate_type: Static[Literal["linear", "cosine"]]
    init_value: Real
    boundaries_and_scales: Pieces | None = None

    def __call__(self, count):
        start, begin, v = self.init_value, 0, _constant(count, self.init_value)
        for step, scale in self.boundaries_and_scales or ():
            end, x = start * scale, _since(count, begin) / jnp.maximum(step - begin, 1)
            if self.interpolate_type == "linear":
                piece = start + (end - start) * x
            else:
                piece = end + (start - end) * _half_cosine(jnp.pi * x)
            v = jnp.where(count < begin, v, piece)
            start, begin = end, step
        return jnp.where(count < begin, v, start)


@checked
def linear_onecycle_schedule(
    transition_steps: PositiveInt,
    peak_value: Real,
    pct_start: Fraction = 0.3,
    pct_final: Fraction = 0.85,
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
) -> piecewise_interpolate_schedule:
    """One cycle of lines: `peak / div` up to `peak`, back down, and on to `peak / div / final_div`.

    `pct_start`, `pct_final`: shares of the steps, in [0, 1], at which the first and the second line end.
    Smith & Topin 2017, arXiv:1708.07120. Differs from Optax, which drops a line, where two end at one step.

    >>> print(linear_onecycle_schedule(10, 1.0, 0.4, 0.8, div_factor=4.0, final_div_factor=4.0)(jnp.arange(0, 12, 2)))
    [0.25   0.625  1.     0.625  0.25   0.0625]
    """
    if _known(pct_start, pct_final) and pct_start > pct_final:
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
    """One cycle of half cosines: `peak / div` up to `peak`, then down to `peak / div / final_div`.

    `pct_start`: the share of the steps, in [0, 1], that go up. Smith & Topin 2017, arXiv:1708.07120.

    >>> print(cosine_onecycle_schedule(10, 1.0, 0.4, div_factor=4.0, final_div_factor=4.0)(jnp.array([0, 2, 4, 10])))
    [0.25   0.625  1.     0.0625]
    """
    pieces = (
        (_whole(pct_start * transition_steps), div_factor),
        (transition_steps, 1.0 / (div_factor * final_div_factor)),
    )
    return piecewise_interpolate_schedule("cosine", peak_value / div_factor, pieces)


def _whole(x: Any) -> Any:
    return int(x) if _known(x) else jnp.floor(x)


@value
class cosine_decay_schedule(Schedule):
    """Half a cosine: `init ((1 - alpha) c^exponent + alpha)`, c = (1 + cos(π min(t / steps, 1))) / 2.

    `alpha`: the last value as a share of the first; `exponent` > 0.
    Loshchilov & Hutter 2017, arXiv:1608.03983.

    >>> print(cosine_decay_schedule(100.0, 3)(jnp.arange(5)).round())
    [100.  75.  25.   0.   0.]
    """

    init_value: Real
    decay_steps: PositiveInt
    alpha: Real = 0.0
    exponent: Positive = 1.0

    def __call__(self, count):
        t = jnp.minimum(_since(count), self.decay_steps)
        c = _power(_half_cosine(jnp.pi * t / self.decay_steps), self.exponent)
        return self.init_value * ((1 - self.alpha) * c + self.alpha)


@value
class cosine_restarts_schedule(Schedule):
    """Cosine decays without end: in cycle n, `init ((1 - alpha) m_mul^n c + alpha)`, c = (1 + cos(π x)) / 2.

    x in [0, 1) runs through the cycle, which is `first_decay_steps t_mul^n` steps long; `t_mul` ≥ 1, `m_mul` ≥ 0.
    Keras's CosineDecayRestarts; not in Optax, whose `sgdr_schedule` lists its cycles.
    Loshchilov & Hutter 2017, arXiv:1608.03983.

    >>> print(cosine_restarts_schedule(800.0, 3, t_mul=1.0, m_mul=0.5)(jnp.arange(7)).round())
    [800. 600. 200. 400. 300. 100. 200.]
    """

    init_value: Real
    first_decay_steps: PositiveInt
    t_mul: Annotated[Scalar, Range("[1, inf)")] = 2.0
    m_mul: NonNegative = 1.0
    alpha: Real = 0.0

    def __call__(self, count):
        s = _since(count) / self.first_decay_steps
        growth, constant = self.t_mul - 1.0, jnp.equal(self.t_mul, 1)
        d = jnp.where(constant, 1.0, growth)
        # cycle n starts at s = (t_mul^n - 1) / (t_mul - 1). The last 1e-5 of a cycle counts as the next one:
        # rounding must not miss a restart
        n = jnp.floor(jnp.where(constant, s, jnp.log1p(d * s) / jnp.log1p(d)) + 1e-5)
        start = jnp.where(constant, n, jnp.expm1(n * jnp.log1p(d)) / d)
        x = jnp.clip((s - start) / (1 + growth * start), 0.0, 1.0)
        return self.init_value * ((1 - self.alpha) * self.m_mul**n * _half_cosine(jnp.pi * x) + self.alpha)


@value
class join_schedules(Schedule):
    """One schedule after the other; each counts from its own boundary.

    `boundaries`: the steps at which the second, the third ... take over, one fewer than `schedules`, in order;
    otherwise ValueError. Optax does not look.

    >>> schedule = join_schedules([linear_schedule(0.0, 1.0, 2), exponential_decay(1.0, 1, 0.5)], [2])
    >>> print(schedule(jnp.arange(5)))
    [0.   0.5  1.   0.5  0.25]
    """

    schedules: tuple
    boundaries: tuple

    def __init__(self, schedules: Sequence[Callable[[Any], Any]], boundaries: Sequence[int]):
        schedules = tuple(_schedule(f"schedules[{i}]", s) for i, s in enumerate(schedules))
        boundaries = tuple(Integer("[0, inf)").check(f"boundaries[{i}]", b) for i, b in enumerate(boundaries))
        if not schedules:
            raise ValueError("schedules must have at least one schedule, got none")
        if len(boundaries) != len(schedules) - 1:
            raise ValueError(f"{len(schedules)} schedules need {len(schedules) - 1} boundaries, got {boundaries}")
        if _known(*boundaries) and list(boundaries) != sorted(boundaries):
            raise ValueError(f"boundaries must be in order, got {boundaries}")
        object.__setattr__(self, "schedules", schedules)
        object.__setattr__(self, "boundaries", boundaries)

    def __call__(self, count):
        v = self.schedules[0](count)
        for boundary, schedule in zip(self.boundaries, self.schedules[1:], strict=True):
            v = jnp.where(count < boundary, v, schedule(jnp.maximum(count - boundary, 0)))
        return v


def _schedule(name: str, x: Any) -> Schedule:
    if isinstance(x, type) or not callable(x):
        raise TypeError(f"{name} must be a schedule or a function of the step, got {x!r}")
    return as_schedule(name, x)


@checked
def warmup_constant_schedule(init_value: Real, peak_value: Real, warmup_steps: Count) -> join_schedules:
    """A linear warm-up, then constant. Without warm-up it is `peak_value` at once; Optax's stays at `init_value`.

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
    """A linear warm-up, then `cosine_decay_schedule`. `decay_steps`, the whole length, must exceed `warmup_steps`.

    >>> print(warmup_cosine_decay_schedule(0.0, 100.0, 2, 5)(jnp.arange(6)).round())
    [  0.  50. 100.  75.  25.   0.]
    """
    steps = decay_steps - warmup_steps
    if _known(steps) and steps <= 0:
        raise ValueError(f"decay_steps must be greater than warmup_steps={warmup_steps}, got {decay_steps}")
    if _known(peak_value):
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
    end_value: Real | None = None,
) -> join_schedules:
    """A linear warm-up, then `exponential_decay`, whose `transition_begin` counts from the end of the warm-up.

    >>> print(warmup_exponential_decay_schedule(0.0, 1.0, 2, 1, 0.5)(jnp.arange(5)))
    [0.   0.5  1.   0.5  0.25]
    """
    decay = exponential_decay(peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value)
    return _warmup(init_value, peak_value, warmup_steps, decay)


def _warmup(init_value: Any, peak_value: Any, warmup_steps: Any, then: Schedule) -> join_schedules:
    steps: Any = max(warmup_steps, 1) if _known(warmup_steps) else jnp.maximum(warmup_steps, 1)
    return join_schedules((linear_schedule(init_value, peak_value, steps), then), (warmup_steps,))


@value
class warmup_stable_decay_schedule(Schedule):
    """A linear warm-up, a plateau, and a decay `end + (peak - end) f(x)`, x in [0, 1]. Not in Optax.

    `warmup_steps`, `stable_steps` and `decay_steps` are the three lengths, one after the other (in
    `warmup_cosine_decay_schedule`, as in Optax, `decay_steps` is the sum). `decay` names f: "linear" 1 - x,
    "cosine" (1 + cos(π x)) / 2, "sqrt" 1 - √x.
    Hu et al. 2024 (MiniCPM), arXiv:2404.06395; "sqrt": Hägele et al. 2024, arXiv:2405.18392.

    >>> print(warmup_stable_decay_schedule(0.0, 1.0, 2, 3, 4, decay="sqrt")(jnp.array([0, 1, 2, 5, 6, 9])))
    [0.  0.5 1.  1.  0.5 0. ]
    """

    init_value: Real
    peak_value: Real
    warmup_steps: Count
    stable_steps: Count
    decay_steps: PositiveInt
    end_value: Real = 0.0
    decay: Static[Literal["linear", "cosine", "sqrt"]] = "linear"

    def __call__(self, count):
        up = _share(_since(count), jnp.maximum(self.warmup_steps, 1))
        x = _share(_since(count, self.warmup_steps + self.stable_steps), self.decay_steps)
        if self.decay == "linear":
            f = 1 - x
        elif self.decay == "cosine":
            f = _half_cosine(jnp.pi * x)
        else:
            f = 1 - _power(x, 0.5)
        warmup = self.init_value + (self.peak_value - self.init_value) * up
        decay = self.end_value + (self.peak_value - self.end_value) * f
        return jnp.where(count < self.warmup_steps, warmup, decay)


def sgdr_schedule(cosine_kwargs: Iterable[Mapping[str, Any]]) -> join_schedules:
    """Warm-ups and cosine decays, one after the other: a `warmup_cosine_decay_schedule` for each dict of arguments.

    Loshchilov & Hutter 2017, arXiv:1608.03983.

    >>> cycle = {"init_value": 0.0, "peak_value": 100.0, "warmup_steps": 1, "decay_steps": 3}
    >>> print(sgdr_schedule([cycle, cycle | {"decay_steps": 4}])(jnp.arange(8)).round())
    [  0. 100.  50.   0. 100.  75.  25.   0.]
    """
    cycles = list(cosine_kwargs)
    schedules = [warmup_cosine_decay_schedule(**cycle) for cycle in cycles]
    return join_schedules(schedules, list(itertools.accumulate(cycle["decay_steps"] for cycle in cycles))[:-1])
