"""Schedules with a single formula: constant, polynomial, exponential, harmonic, cosine, inverse root, plateau."""

from typing import Annotated, Literal

import jax.numpy as jnp

from ..core.checks import Static
from ..core.ranges import Count, Limit, NonNegative, Positive, PositiveInt, Range, Real, Scalar
from ..core.schedule import Schedule, constant, elapsed, half_cosine, periods, power, progress
from ..core.value import value


@value
class constant_schedule(Schedule):
    """The same value at every step.

    >>> constant_schedule(0.5)(jnp.arange(2)).tolist()
    [0.5, 0.5]
    """

    value: Real

    def __call__(self, count):
        return constant(count, self.value)


@value
class polynomial_schedule(Schedule):
    """A power from one value to another: `end + (init - end) (1 - x)^power`, x = (t - begin) / steps in [0, 1].

    `power` > 0. Optax also accepts 0, which gives a constant.

    >>> print(polynomial_schedule(1.0, 0.0, power=2, transition_steps=4)(jnp.arange(6)))
    [1.     0.5625 0.25   0.0625 0.     0.    ]
    """

    init_value: Real
    end_value: Real
    power: Positive
    transition_steps: PositiveInt
    transition_begin: Count = 0

    def __call__(self, count):
        x = progress(elapsed(count, self.transition_begin), self.transition_steps)
        return (self.init_value - self.end_value) * power(1 - x, self.power) + self.end_value


def linear_schedule(
    init_value: Real, end_value: Real, transition_steps: PositiveInt, transition_begin: Count = 0
) -> polynomial_schedule:
    """Returns a straight line from one value to another: a `polynomial_schedule` of power 1.

    >>> linear_schedule(1.0, 0.0, 4)
    polynomial_schedule(1.0, 0.0, 1.0, 4)
    >>> print(linear_schedule(1.0, 0.0, 4)(jnp.arange(6)))
    [1.   0.75 0.5  0.25 0.   0.  ]
    """
    return polynomial_schedule(init_value, end_value, 1.0, transition_steps, transition_begin)


@value
class exponential_decay(Schedule):
    """A decay by a constant factor every so many steps: `init rate^p`, p = max(t - begin, 0) / steps.

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
    end_value: Limit | None = None

    def __call__(self, count):
        p = periods(count, self.transition_begin, self.transition_steps, self.staircase)
        decayed = self.init_value * self.decay_rate**p
        if self.end_value is None:
            return decayed
        ended = jnp.where(self.decay_rate < 1, decayed < self.end_value, decayed > self.end_value)
        # computed again without the steps past the end: their powers may overflow, and would make gradients NaN
        return jnp.where(ended, self.end_value, self.init_value * self.decay_rate ** jnp.where(ended, 0.0, p))


@value
class inverse_time_decay(Schedule):
    """A harmonic decay: `init / (1 + rate p)^exponent`, p = max(t - begin, 0) / steps. Not in Optax.

    `decay_rate`, `exponent` ≥ 0; `staircase` rounds p down.

    >>> print(inverse_time_decay(1.0, 2, 1.0)(jnp.array([0, 2, 6])))
    [1.   0.5  0.25]
    """

    init_value: Real
    transition_steps: PositiveInt
    decay_rate: NonNegative
    transition_begin: Count = 0
    staircase: Static[bool] = False
    exponent: NonNegative = 1.0

    def __call__(self, count):
        p = periods(count, self.transition_begin, self.transition_steps, self.staircase)
        return self.init_value / (1 + self.decay_rate * p) ** self.exponent


@value
class averaging_decay(Schedule):
    """The `decay` with which `params_ema(decay, debias=False)` is a plain mean: `p / (p + 1)`, p = max(t - begin, 0).

    The mean is that of the params after step `transition_begin` and all later ones. Until then it is the params.
    Polyak & Juditsky 1992, SIAM J. Control Optim. 30(4). Not in Optax.

    >>> print(averaging_decay(1)(jnp.array([0, 1, 2, 4])))
    [0.   0.   0.5  0.75]
    """

    transition_begin: Count = 0

    def __call__(self, count):
        p = elapsed(count, self.transition_begin)
        return p / (p + 1)


@value
class inverse_sqrt_schedule(Schedule):
    """A linear warm-up from 0, then a decay as 1/√t: `peak min(t / w, √(w / t))`, w = warmup_steps. Not in Optax.

    With `timescale` τ > 0, in steps (default: max(w, 1)), the decay is `peak √(τ / (τ + t - w))` instead.
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
        decay = jnp.sqrt(scale / (scale + elapsed(count, self.warmup_steps)))
        return self.peak_value * jnp.where(count < self.warmup_steps, elapsed(count) / w, decay)


@value
class cosine_decay_schedule(Schedule):
    """Half a cosine: `init ((1 - alpha) c^exponent + alpha)`, c = (1 + cos(π min(t / steps, 1))) / 2.

    `alpha`: the last value as a fraction of the first; `exponent` > 0.
    Loshchilov & Hutter 2017, arXiv:1608.03983.

    >>> print(cosine_decay_schedule(100.0, 3)(jnp.arange(5)).round())
    [100.  75.  25.   0.   0.]
    """

    init_value: Real
    decay_steps: PositiveInt
    alpha: Real = 0.0
    exponent: Positive = 1.0

    def __call__(self, count):
        t = jnp.minimum(elapsed(count), self.decay_steps)
        c = power(half_cosine(jnp.pi * t / self.decay_steps), self.exponent)
        return self.init_value * ((1 - self.alpha) * c + self.alpha)


@value
class cosine_restarts_schedule(Schedule):
    """Endless cosine decays: in cycle n, `init ((1 - alpha) m_mul^n c + alpha)`, c = (1 + cos(π x)) / 2.

    x in [0, 1) is the progress in the cycle, which has `first_decay_steps t_mul^n` steps; `t_mul` ≥ 1, `m_mul` ≥ 0.
    Keras's CosineDecayRestarts. Not in Optax, whose `sgdr_schedule` takes a list of cycles.
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
        s = elapsed(count) / self.first_decay_steps
        growth, constant = self.t_mul - 1.0, jnp.equal(self.t_mul, 1)
        d = jnp.where(constant, 1.0, growth)
        # cycle n starts at s = (t_mul^n - 1) / (t_mul - 1). The last 1e-5 of a cycle counts as the next one, so that
        # rounding does not miss a restart
        n = jnp.floor(jnp.where(constant, s, jnp.log1p(d * s) / jnp.log1p(d)) + 1e-5)
        start = jnp.where(constant, n, jnp.expm1(n * jnp.log1p(d)) / d)
        x = jnp.clip((s - start) / (1 + growth * start), 0.0, 1.0)
        return self.init_value * ((1 - self.alpha) * self.m_mul**n * half_cosine(jnp.pi * x) + self.alpha)


@value
class warmup_stable_decay_schedule(Schedule):
    """A linear warm-up, a plateau, and a decay `end + (peak - end) f(x)`, x in [0, 1]. Not in Optax.

    `warmup_steps`, `stable_steps` and `decay_steps` are the lengths of the three phases (whereas in
    `warmup_cosine_decay_schedule`, as in Optax, `decay_steps` is the total). `decay` names f: "linear" 1 - x,
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
        up = progress(elapsed(count), jnp.maximum(self.warmup_steps, 1))
        x = progress(elapsed(count, self.warmup_steps + self.stable_steps), self.decay_steps)
        if self.decay == "linear":
            f = 1 - x
        elif self.decay == "cosine":
            f = half_cosine(jnp.pi * x)
        else:
            f = 1 - power(x, 0.5)
        warmup = self.init_value + (self.peak_value - self.init_value) * up
        decay = self.end_value + (self.peak_value - self.end_value) * f
        return jnp.where(count < self.warmup_steps, warmup, decay)
