"""Keras's schedules against its formulas, written out in NumPy; as JSON; under jit."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt.keras import Variable
from functional_opt.keras.optimizers import SGD, Ftrl, schedules
from functional_opt.keras.optimizers.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseTimeDecay,
    LearningRateSchedule,
    PiecewiseConstantDecay,
    PolynomialDecay,
)

STEPS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 12, 16, 17, 40]


def polynomial(t, n=8):
    return (0.5 - 0.1) * (1 - min(t, n) / n) ** 2 + 0.1


def cycled(t):
    return polynomial(t, 8 * max(1, math.ceil(t / 8)))


def cosine(t, n=8, height=1.0, alpha=0.25):
    return (1 - alpha) * height * 0.5 * (1 + math.cos(math.pi * min(t, n) / n)) + alpha


def warmed_up(t):
    return 0.1 + (0.5 - 0.1) * t / 4 if t < 4 else 0.5 * cosine(t - 4)


def restarted(t, t_mul, m_mul):
    n, height = 4, 1.0
    while t >= n:
        t, n, height = t - n, n * t_mul, height * m_mul
    return 0.5 * cosine(t, n, height)


FORMULAS = [
    (ExponentialDecay(0.5, 4, 0.25), lambda t: 0.5 * 0.25 ** (t / 4)),
    (ExponentialDecay(0.5, 4, 0.25, staircase=True), lambda t: 0.5 * 0.25 ** (t // 4)),
    (InverseTimeDecay(0.5, 4, 0.25), lambda t: 0.5 / (1 + 0.25 * t / 4)),
    (InverseTimeDecay(0.5, 4, 0.25, staircase=True), lambda t: 0.5 / (1 + 0.25 * (t // 4))),
    (PiecewiseConstantDecay([2, 8], [1.0, 0.5, 0.25]), lambda t: 1.0 if t <= 2 else 0.5 if t <= 8 else 0.25),
    (PiecewiseConstantDecay([0], [1, 2]), lambda t: 1 if t <= 0 else 2),
    (PiecewiseConstantDecay((), (0.5,)), lambda t: 0.5),
    (PolynomialDecay(0.5, 8, 0.1, power=2.0), polynomial),
    (PolynomialDecay(0.5, 8, 0.1, power=2.0, cycle=True), cycled),
    (CosineDecay(0.5, 8, alpha=0.25), lambda t: 0.5 * cosine(t)),
    (CosineDecay(0.1, 8, alpha=0.25, warmup_target=0.5, warmup_steps=4), warmed_up),
    (CosineDecay(0.5, 8, alpha=0.25, warmup_target=0.7), lambda t: 0.5 * cosine(t)),
    (CosineDecayRestarts(0.5, 4, alpha=0.25), lambda t: restarted(t, 2, 1)),
    (CosineDecayRestarts(0.5, 4, t_mul=1.0, m_mul=0.5, alpha=0.25), lambda t: restarted(t, 1, 0.5)),
]


@pytest.mark.parametrize(("schedule", "formula"), FORMULAS, ids=[type(s).__name__ for s, _ in FORMULAS])
def test_formula(schedule, formula):
    expected = [formula(t) for t in STEPS]
    np.testing.assert_allclose(jax.jit(schedule)(jnp.array(STEPS)), expected, rtol=1e-5)
    for step in (10, np.int64(10), Variable(10)):
        np.testing.assert_allclose(schedule(step), formula(10), rtol=1e-5)


def test_there_and_back():
    for schedule, _ in FORMULAS:
        text = json.dumps(schedules.serialize(schedule))
        twin = schedules.deserialize(json.loads(text))
        assert type(twin) is type(schedule)
        assert vars(twin) == vars(schedule)
        assert json.dumps(schedules.serialize(twin)) == text


class Halving(LearningRateSchedule):
    def __init__(self, start):
        self.start = start

    def __call__(self, step):
        return self.start * 0.5**step


def test_a_schedule_of_ones_own():
    v, opt = Variable(0.0, name="v"), SGD(Halving(0.5))
    for _ in range(3):
        opt.apply_gradients([(1.0, v)])
    assert v.value == -(0.5 + 0.25 + 0.125)
    twin = schedules.deserialize(schedules.serialize(Halving(0.5)), {"Halving": Halving})
    assert float(twin(2)) == 0.125


def test_the_step_is_the_number_of_those_done():
    v, seen = Variable(0.0, name="v"), []
    opt = SGD(PiecewiseConstantDecay([0, 1], [1.0, 2.0, 4.0]))
    for _ in range(4):
        before = float(v)
        opt.minimize(lambda: 1.0 * v)
        seen.append(before - float(v))
    assert seen == [1.0, 2.0, 4.0, 4.0]


ERRORS = [
    (
        lambda: PiecewiseConstantDecay([1, 2], [0.1, 0.2]),
        r"1 less than the length of values. Received: boundaries=\[1",
    ),
    (lambda: PiecewiseConstantDecay([], []), "1 less than the length of values"),
    (lambda: ExponentialDecay(0.1, 0, 0.5)(0), r"must be in \[1, inf\), got 0"),
    (lambda: CosineDecay(0.1, -1)(0), r"decay_steps must be in \[1, inf\), got -1"),
    (
        lambda: schedules.deserialize({"class_name": "Halving", "config": {}}),
        "Unknown learning-rate schedule 'Halving'",
    ),
]


@pytest.mark.parametrize(("make", "message"), ERRORS)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("rate", [CosineDecay(0.1, 5), CosineDecay(0.0, 5, warmup_target=0.1, warmup_steps=3)])
def test_ftrl_where_a_schedule_is_zero(rate):
    """It divides by the rate: a step at 0 is none."""
    optimizer, w = Ftrl(rate), Variable([1.0, -2.0])
    for _ in range(10):
        before = np.array(w)
        moves = float(rate(optimizer.iterations)) != 0
        optimizer.apply_gradients([(jnp.array([0.5, -1.0]), w)])
        assert np.isfinite(np.array(w)).all() and (np.array(w) != before).all() == moves
