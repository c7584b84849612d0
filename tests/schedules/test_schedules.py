"""Schedules: Optax's numbers, references written from the papers, and the contract of a value."""

import dataclasses
import inspect
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import functional_opt as fo
from functional_opt import schedules
from functional_opt.core.schedule import Schedule
from functional_opt.schedules import (
    averaging_decay,
    constant_schedule,
    cosine_decay_schedule,
    cosine_onecycle_schedule,
    cosine_restarts_schedule,
    exponential_decay,
    inverse_sqrt_schedule,
    inverse_time_decay,
    join_schedules,
    linear_onecycle_schedule,
    linear_schedule,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
    polynomial_schedule,
    proportional_schedule,
    sgdr_schedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
    warmup_stable_decay_schedule,
)

LAST = 2**31 - 1
COUNTS = np.array([*range(64), 2**24 + 1, 10**9, LAST], np.int32)

CYCLES = (
    {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 3, "decay_steps": 11},
    {"init_value": 0.1, "peak_value": 0.5, "warmup_steps": 4, "decay_steps": 20, "end_value": 0.01, "exponent": 2.0},
)
# name, arguments; each gives the same schedule here and in Optax
SHARED = [
    ("constant_schedule", (0.3,)),
    ("linear_schedule", (1e-3, 1e-5, 37, 5)),
    ("polynomial_schedule", (0.1, 0.003, 2.5, 41)),
    ("polynomial_schedule", (0.0, 1.0, 0.5, 41, 7)),
    ("exponential_decay", (0.1, 7, 0.9)),
    ("exponential_decay", (0.1, 7, 0.9, 3, True)),
    ("exponential_decay", (0.1, 7, 1.3, 3, False, 0.5)),
    ("exponential_decay", (0.1, 7, 0.7, 0, True, 0.01)),
    ("piecewise_constant_schedule", (1.0, {7: 0.5, 3: 0.1, 20: 7.0})),
    ("piecewise_constant_schedule", (1.0,)),
    ("piecewise_interpolate_schedule", ("linear", 1.0, {7: 0.5, 3: 0.1, 20: 7.0})),
    ("piecewise_interpolate_schedule", ("cosine", 0.3, {5: 3.0, 20: 1e-4})),
    ("piecewise_interpolate_schedule", ("cosine", 0.3)),
    ("cosine_decay_schedule", (0.1, 53)),
    ("cosine_decay_schedule", (0.1, 53, 0.1, 0.5)),
    ("linear_onecycle_schedule", (60, 0.1)),
    ("linear_onecycle_schedule", (47, 0.1, 0.29, 0.7, 10.0, 100.0)),
    ("cosine_onecycle_schedule", (60, 0.1)),
    ("cosine_onecycle_schedule", (60, 0.1, 0.0)),
    ("warmup_constant_schedule", (0.01, 0.1, 13)),
    ("warmup_cosine_decay_schedule", (0.0, 0.1, 10, 60)),
    ("warmup_cosine_decay_schedule", (0.01, 0.1, 0, 60, 0.003, 1.5)),
    ("warmup_cosine_decay_schedule", (0.01, 0.0, 10, 60)),
    ("warmup_exponential_decay_schedule", (0.0, 0.1, 10, 5, 0.8, 4, True, 0.02)),
    ("sgdr_schedule", (CYCLES,)),
]
OURS = [
    inverse_time_decay(0.1, 10, 0.5, 3),
    inverse_time_decay(0.1, 10, 0.5, 3, staircase=True),
    inverse_time_decay(0.1, 10, 0.5, 3, exponent=0.75),
    averaging_decay(3),
    inverse_sqrt_schedule(0.1, 10),
    inverse_sqrt_schedule(0.1, 10, 100.0),
    inverse_sqrt_schedule(0.1, 0),
    cosine_restarts_schedule(0.1, 5),
    cosine_restarts_schedule(0.1, 5, 1.0, 0.9, 0.1),
    warmup_stable_decay_schedule(0.01, 0.1, 10, 20, 15),
    warmup_stable_decay_schedule(0.0, 0.1, 0, 20, 15, 0.01, decay="cosine"),
    warmup_stable_decay_schedule(0.0, 0.1, 10, 0, 15, decay="sqrt"),
    proportional_schedule(0.5, cosine_restarts_schedule(0.1, 5), 0.1),
]
ALL = [getattr(schedules, name)(*args) for name, args in SHARED] + OURS
FORMS = list({jax.tree.structure(s): s for s in ALL}.values())

shared = pytest.mark.parametrize(("name", "args"), SHARED, ids=[f"{n}{a}" for n, a in SHARED])
every = pytest.mark.parametrize("schedule", FORMS, ids=repr)

evaluate = jax.jit(lambda schedule, count: schedule(count))
"""Takes the schedule as an argument: one compilation for a form of schedule, whatever its numbers."""


@shared
def test_same_numbers_as_optax(name, args):
    ours, optaxs = getattr(schedules, name)(*args), getattr(optax, name)(*args)
    expected = [np.asarray(optaxs(jnp.int32(t))) for t in COUNTS]
    np.testing.assert_allclose([np.asarray(ours(jnp.int32(t))) for t in COUNTS], expected, rtol=1e-6)
    # compiled, XLA rounds cosines, powers and a * b + c in another way, for Optax too
    np.testing.assert_allclose(evaluate(ours, COUNTS), expected, rtol=1e-6, atol=2e-7 * np.max(expected))


@pytest.mark.parametrize("name", [*dict(SHARED), "join_schedules"])
def test_same_arguments_as_optax(name):
    def arguments(fn):
        return [(p.name, p.default) for p in inspect.signature(fn).parameters.values()]

    assert arguments(getattr(schedules, name)) == arguments(getattr(optax, name))


def test_in_an_optax_chain():
    tx = optax.sgd(linear_schedule(1.0, 0.0, 2))
    state = tx.init(jnp.ones(1))
    for rate in (1.0, 0.5, 0.0):
        updates, state = tx.update(jnp.ones(1), state)
        assert updates == -rate


# References: float64, one count at a time, from the papers


def inverse_time(t, init, steps, rate, begin=0, staircase=False):
    p = max(t - begin, 0) / steps
    return init / (1 + rate * (math.floor(p) if staircase else p))


def inverse_sqrt(t, peak, w, timescale=None):
    if timescale is None:  # Vaswani et al., eq. 3, without its t = 0
        return peak * min(t / w, math.sqrt(w / max(t, 1)))
    return peak * t / w if t < w else peak / math.sqrt(1 + (t - w) / timescale)


def cosine_restarts(t, init, first, t_mul=2.0, m_mul=1.0, alpha=0.0):
    begin, length, share = 0.0, first, 1.0
    while t >= begin + length - 1e-9:
        begin, length, share = begin + length, length * t_mul, share * m_mul
    return init * ((1 - alpha) * share * (1 + math.cos(math.pi * (t - begin) / length)) / 2 + alpha)


def warmup_stable_decay(t, init, peak, w, stable, steps, end=0.0, decay="linear"):
    if t < w:
        return init + (peak - init) * t / w
    if t < w + stable:
        return peak
    x = min((t - w - stable) / steps, 1)
    f = {"linear": 1 - x, "cosine": (1 + math.cos(math.pi * x)) / 2, "sqrt": 1 - math.sqrt(x)}
    return end + (peak - end) * f[decay]


REFERENCES = [
    (inverse_time_decay, inverse_time, (0.1, 10, 0.5)),
    (inverse_time_decay, inverse_time, (0.1, 10, 0.5, 3, True)),
    (inverse_sqrt_schedule, inverse_sqrt, (0.1, 10)),
    (inverse_sqrt_schedule, inverse_sqrt, (0.1, 10, 50.0)),
    (cosine_restarts_schedule, cosine_restarts, (0.1, 5)),
    (cosine_restarts_schedule, cosine_restarts, (0.1, 4, 1.5, 0.9, 0.1)),
    (cosine_restarts_schedule, cosine_restarts, (0.1, 10, 1.1)),
    (cosine_restarts_schedule, cosine_restarts, (0.1, 7, 1, 0.5)),
    (cosine_restarts_schedule, cosine_restarts, (0.1, 7, 3, 0.0)),
    (warmup_stable_decay_schedule, warmup_stable_decay, (0.01, 0.1, 10, 20, 15)),
    (warmup_stable_decay_schedule, warmup_stable_decay, (0.01, 0.1, 0, 20, 15, 0.001, "cosine")),
    (warmup_stable_decay_schedule, warmup_stable_decay, (0.0, 0.1, 10, 0, 15, 0.0, "sqrt")),
]


@pytest.mark.parametrize(
    ("ours", "reference", "args"), REFERENCES, ids=[f"{o.__name__}{a}" for o, _, a in REFERENCES]
)
def test_reference(ours, reference, args):
    counts = np.arange(160, dtype=np.int32)
    expected = [reference(int(t), *args) for t in counts]
    np.testing.assert_allclose(evaluate(ours(*args), counts), expected, rtol=1e-5, atol=2e-7)


def test_values_worked_out_by_hand():
    assert inverse_sqrt_schedule(2.0, 4)(jnp.array([0, 1, 4, 16, 64])).tolist() == [0.0, 0.5, 2.0, 1.0, 0.5]
    assert inverse_time_decay(1.0, 4, 2.0)(jnp.array([0, 2, 4])).tolist() == pytest.approx([1.0, 0.5, 1 / 3])
    assert warmup_constant_schedule(0.0, 1.0, 0)(jnp.arange(2)).tolist() == [1.0, 1.0]
    assert inverse_time_decay(1.0, 1, 3.0, exponent=0.5)(jnp.array([0, 1, 5])).tolist() == [1.0, 0.5, 0.25]
    # lines that end at the same step: Optax drops one
    assert linear_onecycle_schedule(4, 1.0, 0.5, 1.0, 4.0, 4.0)(jnp.arange(5)).tolist() == pytest.approx(
        [0.25, 0.625, 1.0, 0.625, 0.0625]
    )
    # whole numbers too large for a float32 are subtracted and divided as whole numbers
    far = 2**24 + 1
    assert float(linear_schedule(0.0, 1.0, 2, transition_begin=far)(far + 1)) == 0.5
    assert float(exponential_decay(1.0, far, 0.5, staircase=True)(jnp.int32(far - 1))) == 1.0
    assert float(join_schedules([constant_schedule(0.0), linear_schedule(0.0, 1.0, 2)], [far])(far + 1)) == 0.5


# the rate before each of ten steps, recorded from Keras 3.15
RECORDED = [
    (
        exponential_decay(0.1, 3, 0.5),
        "0.1, 0.07937005, 0.06299605, 0.05, 0.03968503, 0.03149803, 0.025, 0.01984251, 0.01574901, 0.0125",
    ),
    (exponential_decay(0.1, 3, 0.5, staircase=True), "0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025, 0.0125"),
    (
        inverse_time_decay(0.1, 2, 0.5),
        "0.1, 0.08, 0.06666667, 0.05714286, 0.05, 0.04444445, 0.04, 0.03636364, 0.03333334, 0.03076923",
    ),
    (
        inverse_time_decay(0.1, 2, 0.5, staircase=True),
        "0.1, 0.1, 0.06666667, 0.06666667, 0.05, 0.05, 0.04, 0.04, 0.03333334, 0.03333334",
    ),
    (polynomial_schedule(0.1, 0.01, 2.0, 6), "0.1, 0.0725, 0.05, 0.0325, 0.02, 0.0125, 0.01, 0.01, 0.01, 0.01"),
    (
        cosine_decay_schedule(0.1, 8, 0.1),
        "0.1, 0.09657458, 0.08681981, 0.07222076, 0.055, 0.03777924, 0.0231802, 0.01342542, 0.01, 0.01",
    ),
    (
        warmup_cosine_decay_schedule(0.0, 0.1, 3, 8, 0.01),
        "0, 0.03333334, 0.06666667, 0.1, 0.09140576, 0.06890576, 0.04109422, 0.01859423, 0.01, 0.01",
    ),
    (
        cosine_restarts_schedule(0.1, 3, 2.0, 0.9, 0.05),
        "0.1, 0.07625, 0.02875, 0.0905, 0.08477259, 0.069125, 0.04775, 0.02637501, 0.01072741, 0.08195",
    ),
]


@pytest.mark.parametrize(("schedule", "rates"), RECORDED, ids=[repr(s) for s, _ in RECORDED])
def test_recorded_from_keras(schedule, rates):
    np.testing.assert_allclose(schedule(jnp.arange(10)), np.fromstring(rates, sep=","), rtol=1e-5)


def test_restart_falls_on_its_step():
    for t_mul, restarts in ((1.0, [10, 20, 1000, 12340]), (1.1, [10, 21]), (2.0, [10, 30, 70, 10 * (2**20 - 1)])):
        values = evaluate(cosine_restarts_schedule(1.0, 10, t_mul), jnp.array(restarts, jnp.int32))
        np.testing.assert_allclose(values, 1.0)


# The contract of a schedule


@every
def test_one_count_or_many(schedule):
    many = evaluate(schedule, COUNTS)
    assert many.shape == COUNTS.shape
    assert many.dtype == jnp.float32
    assert np.isfinite(many).all()
    scale = float(np.abs(many).max())
    np.testing.assert_allclose(schedule(COUNTS), many, rtol=1e-5, atol=1e-6 * scale)
    for i in (0, 5, 10, len(COUNTS) - 1):
        for count in (int(COUNTS[i]), jnp.int32(COUNTS[i])):
            one = schedule(count)
            assert one.shape == ()
            assert one.dtype == jnp.float32
            np.testing.assert_allclose(one, many[i], rtol=1e-5, atol=1e-6 * scale)


@every
def test_new_numbers_do_not_recompile_and_vmap_over_them(schedule):
    traces = []

    @jax.jit
    def step(schedule, count):
        traces.append(count)
        return schedule(count)

    other = jax.tree.map(lambda x: 2 * x, schedule)
    a, b = step(schedule, COUNTS), step(other, COUNTS)
    assert len(traces) == 1
    both = jax.tree.map(lambda *x: jnp.stack(x), schedule, other)
    stacked = jax.vmap(evaluate, in_axes=(0, None))(both, COUNTS)
    np.testing.assert_allclose(stacked, [a, b], rtol=1e-4, atol=1e-6)


@every
def test_gradients_are_finite(schedule):
    schedule = jax.tree.map(float, schedule)  # steps too

    def total(schedule):
        return schedule(COUNTS).sum()

    def both(schedule):
        _, forward = jax.jvp(lambda s: s(COUNTS), (schedule,), (jax.tree.map(jnp.ones_like, schedule),))
        return jax.grad(total)(schedule), forward

    for x in jax.tree.leaves(jax.jit(both)(schedule)):
        assert np.isfinite(x).all()


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_is_a_value(schedule):
    assert eval(repr(schedule), vars(schedules)) == schedule
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule
    assert hash(copy) == hash(schedule)
    assert dataclasses.replace(schedule) == schedule
    assert schedule != jax.tree.map(lambda x: x + 1, schedule)


def test_repr_is_the_code():
    assert repr(cosine_decay_schedule(0.001, 100)) == "cosine_decay_schedule(0.001, 100)"
    assert repr(exponential_decay(0.1, 5, 0.9, staircase=True)) == "exponential_decay(0.1, 5, 0.9, staircase=True)"
    assert repr(warmup_constant_schedule(0.0, 0.1, 5)) == (
        "join_schedules((polynomial_schedule(0.0, 0.1, 1.0, 5), constant_schedule(0.1)), (5,))"
    )


def test_a_dict_is_copied_and_put_in_order():
    scales = {20: 0.1, 10: 0.5}
    schedule = piecewise_constant_schedule(1.0, scales)
    scales[5] = 0.0
    assert schedule == piecewise_constant_schedule(1.0, {10: 0.5, 20: 0.1})
    assert dataclasses.replace(schedule, init_value=2.0) == piecewise_constant_schedule(2.0, {10: 0.5, 20: 0.1})


def test_gradient():
    schedule = jax.tree.map(float, polynomial_schedule(1.0, 0.2, 2.0, 10))
    d = jax.grad(lambda s: s(5))(schedule)
    # (init - end) x^power + end at x = 1/2, x = 1 - t / steps
    np.testing.assert_allclose([d.init_value, d.end_value], [0.25, 0.75])
    np.testing.assert_allclose([d.power, d.transition_steps], [0.8 * 0.25 * math.log(0.5), 0.8 * 2 * 0.5 * 5 / 100])
    d = jax.grad(lambda s: s(12))(schedule)
    assert jax.tree.leaves(d) == [0.0, 1.0, 0.0, 0.0, 0.0]


MADE_FROM_TRACERS = [
    lambda peak, n: linear_onecycle_schedule(n, peak),
    lambda peak, n: cosine_onecycle_schedule(n, peak),
    lambda peak, n: warmup_constant_schedule(0.0, peak, n),
    lambda peak, n: warmup_cosine_decay_schedule(0.0, peak, n, 2 * n, 0.001),
    lambda peak, n: warmup_exponential_decay_schedule(0.0, peak, n, n, 0.5),
    lambda peak, n: warmup_stable_decay_schedule(0.0, peak, n, n, n),
    lambda peak, n: piecewise_constant_schedule(peak, [(n, 0.5)]),
    lambda peak, n: sgdr_schedule([{"init_value": 0.0, "peak_value": peak, "warmup_steps": n, "decay_steps": 2 * n}]),
]


@pytest.mark.parametrize("make", MADE_FROM_TRACERS)
def test_made_from_traced_numbers(make):
    peaks, steps = jnp.array([0.1, 0.2]), jnp.array([10, 20])
    values = jax.jit(jax.vmap(lambda peak, n: make(peak, n)(COUNTS)))(peaks, steps)
    for i in (0, 1):
        np.testing.assert_allclose(values[i], make(float(peaks[i]), int(steps[i]))(COUNTS), rtol=1e-4, atol=1e-7)


def test_a_zero_peak_that_is_traced():
    schedule = jax.jit(lambda peak: warmup_cosine_decay_schedule(0.1, peak, 5, 10))(0.0)
    assert evaluate(schedule, jnp.array([0, 5, 8])).tolist() == pytest.approx([0.1, 0.0, 0.0])


def test_plain_functions_in_a_join():
    schedule = join_schedules([lambda count: 0.5, jnp.sqrt, linear_schedule(1.0, 0.0, 2)], [2, 6])
    assert schedule(jnp.arange(9)).tolist() == pytest.approx([0.5, 0.5, 0, 1, 2**0.5, 3**0.5, 1.0, 0.5, 0.0])
    assert all(isinstance(s, Schedule) for s in schedule.schedules)
    # the root is not asked about counts before its first: no NaN
    d = jax.grad(lambda x: join_schedules([constant_schedule(x), lambda t: jnp.sqrt(x * (t + 0.5))], [2])(0))(1.0)
    assert d == 1.0


def test_arrays_of_16_bits_and_of_64():
    schedule = cosine_decay_schedule(jnp.bfloat16(0.5), 1000)
    assert schedule(jnp.int32(1)).dtype == jnp.float32
    assert 0.499 < schedule(jnp.int32(1)) < 0.5
    with jax.enable_x64(True):
        x = cosine_decay_schedule(0.1, 1000)(jnp.int32(1))
        assert x.dtype == jnp.float64
        assert float(x) == pytest.approx(0.05 * (1 + math.cos(math.pi / 1000)), rel=1e-15)


ERRORS = [
    (lambda: linear_schedule(1.0, 0.0, 0), ValueError, r"transition_steps must be in \[1, inf\), got 0"),
    (lambda: polynomial_schedule(1.0, 0.0, 1.0, -5), ValueError, r"transition_steps must be .*, got -5"),
    (lambda: polynomial_schedule(1.0, 0.0, 0.0, 5), ValueError, "power must be .*, got 0.0"),
    (lambda: polynomial_schedule(1.0, 0.0, 1.0, 5, -1), ValueError, "transition_begin must be .*, got -1"),
    (
        lambda: polynomial_schedule(1.0, 0.0, 1.0, 5.5),
        TypeError,
        "transition_steps must be a whole number .*, got 5.5",
    ),
    (lambda: exponential_decay(1.0, 0, 0.9), ValueError, "transition_steps must be .*, got 0"),
    (lambda: exponential_decay(1.0, 5, 0.0), ValueError, "decay_rate must be .*, got 0.0"),
    (lambda: exponential_decay("1.0", 5, 0.9), TypeError, r"init_value must be a number .*, got '1.0' \(str\)"),
    (lambda: exponential_decay(1.0, 5, 0.9, staircase=1), ValueError, "staircase must be False or True, got 1"),
    (lambda: exponential_decay(1.0, 5, 0.9, end_value="x"), TypeError, "end_value must be a number"),
    (lambda: inverse_time_decay(1.0, 5, -0.9), ValueError, "decay_rate must be .*, got -0.9"),
    (lambda: inverse_sqrt_schedule(1.0, -1), ValueError, "warmup_steps must be .*, got -1"),
    (lambda: inverse_sqrt_schedule(1.0, 5, 0.0), ValueError, "timescale must be .*, got 0.0"),
    (lambda: constant_schedule("x"), TypeError, "value must be a number"),
    (lambda: constant_schedule(float("nan")), ValueError, "value must be .*, got nan"),
    (lambda: cosine_decay_schedule(1.0, 0), ValueError, "decay_steps must be .*, got 0"),
    (lambda: cosine_decay_schedule(1.0, 5, exponent=0), ValueError, "exponent must be .*, got 0"),
    (lambda: cosine_restarts_schedule(1.0, 0), ValueError, "first_decay_steps must be .*, got 0"),
    (lambda: cosine_restarts_schedule(1.0, 5, 0.5), ValueError, r"t_mul must be in \[1, inf\), got 0.5"),
    (lambda: piecewise_constant_schedule(1.0, {5: -0.1}), ValueError, r"boundaries_and_scales\[5\] .*, got -0.1"),
    (lambda: piecewise_constant_schedule(1.0, {-5: 0.1}), ValueError, "step in boundaries_and_scales .*, got -5"),
    (lambda: piecewise_constant_schedule(1.0, {"5": 0.1}), TypeError, "step in boundaries_and_scales .*, got '5'"),
    (lambda: piecewise_constant_schedule(1.0, {5: "0.1"}), TypeError, r"boundaries_and_scales\[5\] .*, got '0.1'"),
    (lambda: piecewise_constant_schedule(1.0, 5), TypeError, r"boundaries_and_scales must be a dict .*, got 5"),
    (lambda: piecewise_constant_schedule(1.0, [5, 6]), TypeError, r"boundaries_and_scales must be a dict .*, got"),
    (
        lambda: piecewise_interpolate_schedule("cubic", 1.0),
        ValueError,
        "interpolate_type must be 'linear' or 'cosine'",
    ),
    (lambda: linear_onecycle_schedule(0, 1.0), ValueError, "transition_steps must be .*, got 0"),
    (lambda: linear_onecycle_schedule(10, 1.0, 1.5), ValueError, "pct_start must be .*, got 1.5"),
    (
        lambda: linear_onecycle_schedule(10, 1.0, 0.9, 0.5),
        ValueError,
        "pct_final must be at least pct_start=0.9, got 0.5",
    ),
    (lambda: cosine_onecycle_schedule(10, 1.0, div_factor=0), ValueError, "div_factor must be .*, got 0"),
    (lambda: warmup_constant_schedule(0.0, 1.0, -1), ValueError, "warmup_steps must be .*, got -1"),
    (lambda: warmup_cosine_decay_schedule(0.0, 1.0, 9, 9), ValueError, "decay_steps .* than warmup_steps=9, got 9"),
    (lambda: warmup_cosine_decay_schedule(0.0, "1", 9, 19), TypeError, "peak_value must be a number"),
    (
        lambda: warmup_exponential_decay_schedule(0.0, 1.0, 9, 0, 0.5),
        ValueError,
        "transition_steps must be .*, got 0",
    ),
    (lambda: warmup_stable_decay_schedule(0.0, 1.0, 9, 9, 0), ValueError, "decay_steps must be .*, got 0"),
    (lambda: warmup_stable_decay_schedule(0.0, 1.0, 9, 9, 9, decay="exp"), ValueError, "decay must be 'linear' or"),
    (lambda: sgdr_schedule([]), ValueError, "at least one schedule"),
    (lambda: sgdr_schedule([{"init_value": 1.0}]), TypeError, "peak_value"),
    (lambda: join_schedules([], []), ValueError, "at least one schedule"),
    (lambda: join_schedules([jnp.sqrt], [1]), ValueError, r"1 schedules need 0 boundaries, got \(1,\)"),
    (lambda: join_schedules([jnp.sqrt] * 3, [1]), ValueError, r"3 schedules need 2 boundaries, got \(1,\)"),
    (lambda: join_schedules([jnp.sqrt] * 3, [5, 4]), ValueError, r"boundaries must be in order, got \(5, 4\)"),
    (lambda: join_schedules([jnp.sqrt] * 2, [-1]), ValueError, r"boundaries\[0\] must be .*, got -1"),
    (lambda: join_schedules([jnp.sqrt] * 2, ["1"]), TypeError, r"boundaries\[0\] must be .*, got '1'"),
    (lambda: join_schedules([jnp.sqrt, 0.1], [1]), TypeError, r"schedules\[1\] must be a schedule .*, got 0.1"),
    (lambda: join_schedules(jnp.sqrt, [1]), TypeError, "schedules must be a list, got <"),
    (lambda: join_schedules([jnp.sqrt] * 2, 1), TypeError, r"boundaries must be a list, got 1 \(int\)"),
    (lambda: join_schedules([cosine_decay_schedule], []), TypeError, r"schedules\[0\] must be a schedule .* <class"),
]


@pytest.mark.parametrize(("make", "error", "message"), ERRORS, ids=[m for *_, m in ERRORS])
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


FUNCTIONS = [
    (lambda: 0.1, r"^learning_rate must be a function of the step count alone, .*too many positional arguments"),
    (lambda step, epoch: 0.1, r"^learning_rate must be a function of the step count alone, .*argument: 'epoch'"),
    (lambda step: None, r"^the schedule .*<lambda> must return a number, got None"),
    (lambda step: "0.1", r"^the schedule .*<lambda> must return a number, got '0.1'"),
    (lambda step: jnp.ones(3), r"^the schedule .*<lambda> must return a number, got an array of shape \(3,\)"),
    (lambda step: 0.1j, r"^the schedule .*<lambda> must return a number, got 0.1j"),
]


@pytest.mark.parametrize(("f", "message"), FUNCTIONS, ids=[m for _, m in FUNCTIONS])
def test_functions_that_are_no_schedules(f, message):
    """A function without a `return` gives None, and a step then had no rate at all."""
    with pytest.raises(TypeError, match=message):
        tx = fo.adam(f)
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)))


def test_a_function_that_branches_in_python_is_told_how_to():
    tx = fo.adam(lambda step: 0.1 if step < 3 else 0.01)
    state = tx.init(1.0)
    tx.update(1.0, state)
    with pytest.raises(jax.errors.TracerBoolConversionError) as e:
        jax.jit(tx.update)(1.0, state)
    assert any("decides in Python by the step count" in note and "jnp.where" in note for note in e.value.__notes__)


# Properties. Schedules go into the compiled `evaluate` as arguments, so no example compiles anything

T = np.arange(100, dtype=np.int32)
examples = settings(max_examples=30, deadline=None, derandomize=True)
number = st.floats(-10.0, 10.0, width=32, allow_subnormal=False)  # XLA flushes those to 0
rate = st.floats(0.0, 1.0, width=32, allow_subnormal=False)
steps = st.integers(1, 69)
length = st.integers(0, 30)


def over_time(schedule):
    return np.asarray(evaluate(schedule, T))


@examples
@given(number, number, st.floats(0.125, 8.0), steps, length)
def test_polynomial_goes_from_one_value_to_the_other(init, end, power, n, begin):
    schedule = polynomial_schedule(init, end, power, n, begin)
    values, slack = over_time(schedule), 1e-5 * (abs(init) + abs(end)) + 1e-30
    assert (values >= min(init, end) - slack).all()
    assert (values <= max(init, end) + slack).all()
    assert (np.diff(values) * math.copysign(1, end - init) >= -slack).all()
    np.testing.assert_allclose(values[: begin + 1], init, atol=slack)
    assert (values[n + begin :] == np.float32(end)).all()


@examples
@given(rate, steps, rate, st.floats(0.5, 4.0))
def test_cosine_falls_between_its_ends(init, n, alpha, exponent):
    schedule = cosine_decay_schedule(init, n, alpha, exponent)
    values = over_time(schedule)
    assert (np.diff(values) <= 1e-6).all()
    assert values[0] == pytest.approx(init)
    np.testing.assert_allclose(values[n:], init * alpha, rtol=1e-5, atol=1e-30)


@examples
@given(rate, steps, st.floats(0.01, 0.99), length, rate)
def test_exponential_falls_to_its_end(init, n, decay_rate, begin, end):
    schedule = exponential_decay(init, n, decay_rate, begin, end_value=end)
    values = over_time(schedule)
    assert (np.diff(values) <= 1e-6).all()
    assert (values >= np.float32(end)).all()


@examples
@given(rate, rate, length, length, length.map(lambda n: n + 1), st.sampled_from(["linear", "cosine", "sqrt"]))
def test_warmup_stable_decay_is_continuous(peak, end, w, stable, n, decay):
    values = over_time(warmup_stable_decay_schedule(0.0, peak, w, stable, n, end, decay))
    np.testing.assert_allclose(values[w : w + stable + 1], peak, atol=1e-6)
    np.testing.assert_allclose(values[w + stable + n :], end, atol=1e-6)
    assert (values >= -1e-6).all()
    assert (values <= max(peak, end) + 1e-6).all()


@examples
@given(number, number, number, steps, steps)
def test_lines_join_without_a_jump(a, b, c, n, m):
    joined = join_schedules([linear_schedule(a, b, n), linear_schedule(b, c, m)], [n])
    steepest = max(abs(a - b) / n, abs(b - c) / m)
    assert (np.abs(np.diff(over_time(joined))) <= steepest + 1e-4).all()


@examples
@given(number, st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99)), st.tuples(rate, rate, rate))
def test_pieces(init, boundaries, scales):
    pieces = dict(zip(boundaries, scales, strict=True))
    pieces |= {100 + i: 1.0 for i in range(3 - len(pieces))}  # always three: one compilation
    expected = [init * math.prod(scale for step, scale in pieces.items() if t >= step) for t in T]
    np.testing.assert_allclose(over_time(piecewise_constant_schedule(init, pieces)), expected, rtol=1e-5, atol=1e-30)
    for kind in ("linear", "cosine"):
        values = over_time(piecewise_interpolate_schedule(kind, init, pieces))
        for step in pieces:
            if step < 100:
                np.testing.assert_allclose(values[step], expected[step], rtol=1e-5, atol=2e-6)


@examples
@given(st.sampled_from(FORMS), st.integers(0, LAST))
def test_the_same_alone_as_among_many(schedule, t):
    counts = COUNTS.copy()
    counts[7] = t
    many = evaluate(schedule, counts)
    np.testing.assert_allclose(evaluate(schedule, np.int32(t)), many[7], rtol=1e-5, atol=1e-6 * np.abs(many).max())


@pytest.mark.parametrize(
    "build",
    [
        lambda n: cosine_decay_schedule(1.0, n),
        lambda n: exponential_decay(1.0, n, 0.5, staircase=True),
        lambda n: piecewise_constant_schedule(1.0, {n // 20: 0.5, n: 0.5}),
        lambda n: linear_onecycle_schedule(n, 1.0),
        lambda n: join_schedules([constant_schedule(1.0), constant_schedule(2.0)], [n // 20]),
    ],
)
def test_more_steps_than_int32_can_count(build):
    """Also as an argument of a jitted function."""
    value = jax.jit(lambda schedule, count: schedule(count))
    np.testing.assert_allclose(value(build(10**10), 10**9), value(build(10**3), 10**2), rtol=1e-6)
