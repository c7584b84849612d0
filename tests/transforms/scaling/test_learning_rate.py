"""scale, scale_by_schedule, scale_by_learning_rate: signs, counts, and what a rate may be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import adam, chain, scale, scale_by_learning_rate, scale_by_schedule, sgd
from functional_opt.schedules import cosine_decay_schedule, linear_schedule

from ...helpers import INT32_MAX, train_jitted


def rates(tx, steps):
    """What an update of 1 becomes at each step."""
    _, updates, _ = train_jitted(tx, {"w": jnp.zeros([])}, {"w": jnp.ones(steps)})
    return updates["w"].tolist()


def test_a_schedule_sees_the_count_before_it_is_incremented():
    assert rates(scale_by_schedule(linear_schedule(0.0, 4.0, 4)), 3) == [0.0, 1.0, 2.0]
    assert rates(scale_by_learning_rate(linear_schedule(0.0, 4.0, 4)), 3) == [0.0, -1.0, -2.0]
    assert rates(sgd(lambda count: count + 1.0), 3) == [-1.0, -2.0, -3.0]


def test_counts_past_the_end():
    tx = scale_by_schedule(linear_schedule(0.0, 4.0, 4))
    state = tx.init(None)._replace(count=jnp.int32(INT32_MAX))
    updates, state = tx.update({"w": 1.0}, state)
    assert updates["w"] == 4.0 and int(state.count) == INT32_MAX


def test_signs():
    assert rates(scale_by_learning_rate(0.5), 1) == [-0.5]
    assert rates(scale_by_learning_rate(0.5, flip_sign=False), 1) == [0.5]
    assert rates(scale_by_learning_rate(None), 1) == [-1.0]
    assert rates(scale(-0.5), 1) == [-0.5]


@pytest.mark.parametrize(
    "rate", [np.float32(0.5), np.float64(0.5), np.array(0.5), jnp.float32(0.5), jnp.bfloat16(0.5), 0.5, lambda t: 0.5]
)
def test_rates_of_every_kind(rate):
    tx = sgd(rate)
    updates, _ = tx.update({"w": jnp.ones(2, "bfloat16")}, tx.init({"w": jnp.ones(2, "bfloat16")}))
    assert updates["w"].dtype == jnp.bfloat16 and updates["w"].tolist() == [-0.5, -0.5]


def test_a_schedules_numbers_are_inputs_of_a_jitted_step():
    traces = []

    @jax.jit
    def step(tx):
        traces.append(tx)
        return tx.update({"w": 1.0}, tx.init({"w": 0.0}))[0]["w"]

    assert [float(step(sgd(cosine_decay_schedule(rate, steps)))) for rate, steps in [(0.5, 10), (0.25, 20)]] == [
        -0.5,
        -0.25,
    ]
    assert len(traces) == 1


def test_a_learning_rate_is_an_input_of_a_state_as_well():
    """A rate that the state carries: no wrapper is needed to change one while training."""
    updates, _ = jax.jit(lambda rate: sgd(rate).update({"w": 1.0}, sgd(rate).init({"w": 0.0})))(0.25)
    assert updates["w"] == -0.25


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: adam(-1.0), ValueError, r"learning_rate must be in \[0, inf\), got -1.0"),
        (lambda: adam("0.1"), TypeError, "learning_rate must be a number in .*, a schedule or .* got '0.1'"),
        (lambda: adam([0.1]), TypeError, r"learning_rate must be a number in .* got \[0.1\] \(list\)"),
        (lambda: adam(None), TypeError, "learning_rate must be a number in .* got None"),
        (lambda: adam(cosine_decay_schedule), TypeError, "learning_rate .* the class cosine_decay_schedule; call it"),
        (lambda: scale("x"), TypeError, "step_size must be a number"),
        (lambda: scale(lambda t: 0.1), TypeError, "step_size must be a number"),
    ],
)
def test_what_is_no_rate(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_zero_is_a_rate():
    tx = chain(scale(0.0), scale_by_learning_rate(0.0))
    assert tx.update({"w": jnp.ones([])}, tx.init(None))[0]["w"] == 0.0
