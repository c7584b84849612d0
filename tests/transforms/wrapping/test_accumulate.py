"""MultiSteps: one step on the mean gradient, under a real cond, with windows that grow and mini-steps left out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from functional_opt import MultiSteps, adam, adamw, chain, scale, sgd, skip_large_updates, skip_not_finite
from functional_opt.schedules import piecewise_constant_schedule

from ...helpers import assert_close, assert_same_types, at, make_grads, make_params, train, without_bias


def mean(grads, k):
    """The mean of every k gradients in a row."""
    return jax.tree.map(lambda g: g.reshape(-1, k, *g.shape[1:]).mean(1), grads)


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("k", [1, 3])
def test_the_same_as_one_step_on_the_mean(make, k):
    params, grads = make_params(), make_grads(6)
    all_params, updates, state = train(MultiSteps(make(0.1), k), params, grads)
    expected, expected_updates, expected_state = train(make(0.1), params, mean(grads, k))
    assert_close(jax.tree.map(lambda w: w[k - 1 :: k], all_params), expected, rtol=1e-5)
    assert_close(state.inner_opt_state, expected_state, rtol=1e-5)
    if k > 1:
        assert_close(jax.tree.map(lambda u: u[::k], updates), jax.tree.map(jnp.zeros_like, expected_updates))
    assert int(state.gradient_step) == 6 // k and int(state.mini_step) == 0


def test_the_sum_on_request():
    _, updates, _ = train(MultiSteps(sgd(1.0), 2, use_grad_mean=False), {"w": 0.0}, {"w": jnp.array([1.0, 3.0])})
    assert updates["w"].tolist() == [0.0, -4.0]


@given(st.lists(st.integers(-100, 100), min_size=4, max_size=4))
def test_the_running_mean_is_the_mean(grads):
    tx = MultiSteps(sgd(1.0), 4)
    state = tx.init({"w": 0.0})
    for i, g in enumerate(grads):
        updates, state = tx.update({"w": jnp.float32(g)}, state)
        assert bool(tx.has_updated(state)) == (i == 3)
        if i < 3:
            np.testing.assert_allclose(state.acc_grads["w"], np.mean(grads[: i + 1]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(updates["w"], -np.mean(grads), rtol=1e-5, atol=1e-5)
    assert state.acc_grads["w"] == 0.0


def test_nothing_has_updated_before_the_first_window_closes():
    tx = MultiSteps(sgd(1.0), 2)
    state = tx.init({"w": 0.0})
    found = [bool(tx.has_updated(state))]
    for _ in range(4):
        _, state = tx.update({"w": 1.0}, state)
        found.append(bool(tx.has_updated(state)))
    assert found == [False, False, True, False, True]


def primitives(jaxpr, inside_cond=False):
    """The names of all primitives, each with whether it stands inside a branch of a cond."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name, inside_cond
        for sub in jaxprs_in_params(eqn.params):
            yield from primitives(sub, inside_cond or eqn.primitive.name == "cond")


def test_the_inner_update_runs_inside_a_cond():
    tx, params = MultiSteps(adam(0.1), 4), make_params()
    jaxpr = jax.make_jaxpr(tx.update)(at(make_grads(1), 0), tx.init(params), params).jaxpr
    seen = set(primitives(jaxpr))
    assert ("sqrt", True) in seen and ("sqrt", False) not in seen


def test_a_schedule_of_windows():
    """k = 1 for the first update, then 2: it is a function of the updates done, not of the mini-steps."""
    for k in (piecewise_constant_schedule(1, {1: 2.0}), lambda updates_done: jnp.where(updates_done < 1, 1, 2)):
        _, updates, state = train(MultiSteps(sgd(1.0), k), {"w": 0.0}, {"w": jnp.array([1.0, 2.0, 4.0, 1.0, 1.0])})
        assert updates["w"].tolist() == [-1.0, 0.0, -3.0, 0.0, -1.0] and int(state.gradient_step) == 3


@pytest.mark.parametrize(
    "skip, bad",
    [
        (skip_not_finite, np.nan),
        (skip_not_finite, np.inf),
        (functools.partial(skip_large_updates, max_squared_norm=9.0), 3.0),
    ],
)
def test_skipped_mini_steps_leave_no_trace(skip, bad):
    tx = MultiSteps(sgd(1.0), 2, should_skip_update_fn=skip)
    params, grads = {"w": jnp.zeros(2)}, {"w": jnp.array([[1.0, 0.0], [bad, 0.0], [0.0, 1.0], [bad, bad]])}
    _, updates, state = train(tx, params, grads)
    assert updates["w"].tolist() == [[0.0, 0.0], [0.0, 0.0], [-0.5, -0.5], [0.0, 0.0]]
    assert (int(state.mini_step), int(state.gradient_step)) == (0, 1) and bool(state.skip_state["should_skip"])
    assert state.acc_grads["w"].tolist() == [0.0, 0.0]
    assert_same_types(state, tx.init(params))


def test_what_skip_functions_report():
    grads = {"a": jnp.array([np.nan, np.inf, 1.0]), "b": None}
    skip, info = skip_not_finite(grads, jnp.int32(0))
    assert bool(skip) and int(info["num_not_finite"]) == 2
    skip, info = skip_large_updates({"a": jnp.array([3.0, 4.0])}, jnp.int32(0), max_squared_norm=26.0)
    assert not bool(skip) and float(info["norm_squared"]) == 25.0
    assert bool(skip_large_updates(grads, jnp.int32(0), max_squared_norm=1e9)[0])


def test_none_leaves_stay_none():
    tx, params, grads = MultiSteps(adam(0.1), 2), make_params(), make_grads(2)
    state = tx.init(params)
    for i in range(2):
        updates, state = tx.update(without_bias(at(grads, i)), state, params)
        assert updates["dense"]["bias"] is None
        assert state.acc_grads["dense"]["bias"].tolist() == [0.0] * 4
    assert float(updates["scale"]) != 0.0


def test_accumulates_in_float32_and_as_asked():
    params = {"w": jnp.ones([], "bfloat16")}
    grads = {"w": jnp.full(256, 1.0, "bfloat16").at[0].set(258.0)}
    _, updates, state = train(MultiSteps(sgd(1.0), 256), params, grads)
    assert state.acc_grads["w"].dtype == jnp.float32 and updates["w"].dtype == jnp.bfloat16
    assert float(updates["w"][-1]) == -2.0
    assert MultiSteps(sgd(1.0), 2, accumulator_dtype="bfloat16").init(params).acc_grads["w"].dtype == jnp.bfloat16


def test_stands_in_a_chain_and_a_script_of_optax():
    tx = MultiSteps(chain(scale(2.0), sgd(1.0)), 1)
    assert tx.gradient_transformation() is tx
    outer = chain(scale(0.5), tx)
    assert outer.update({"w": jnp.ones([])}, outer.init({"w": 0.0}))[0]["w"] == -1.0


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: MultiSteps(sgd(0.1), 0), ValueError, r"every_k_schedule must be in \[1, inf\), got 0"),
        (lambda: MultiSteps(sgd(0.1), 2.5), TypeError, "every_k_schedule must be a whole number .* got 2.5"),
        (lambda: MultiSteps(sgd, 2), TypeError, r"opt must be a gradient transformation .* call it: sgd\(...\)"),
    ],
)
def test_what_is_no_window(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_skip_function_must_return_one_bool():
    tx = MultiSteps(sgd(0.1), 2, should_skip_update_fn=lambda g, n, p: (jnp.array([True]), ()))
    with pytest.raises(ValueError, match="should_skip_update_fn must return a bool scalar first, got"):
        tx.update({"w": 1.0}, tx.init({"w": 1.0}))


def test_uneven_mini_batches():
    """A mean over 3 examples and one over 1 make the mean over 4."""
    sums, sizes = jnp.array([3.0, 8.0]), jnp.array([3, 1])
    tx = MultiSteps(sgd(1.0), 2)
    state = tx.init({"w": 0.0})
    step = jax.jit(lambda g, state, size: tx.update({"w": g}, state, {"w": 0.0}, weight=size))
    for total, size in zip(sums, sizes, strict=True):
        updates, after = step(total / size, state, size)
        assert_same_types(after, state)
        state = after
    assert updates["w"] == -11 / 4 and state.weight_sum == 0.0


def test_weights_of_a_sum_and_of_nothing():
    tx = MultiSteps(sgd(1.0), 3, use_grad_mean=False)
    state = tx.init({"w": 0.0})
    for g, weight in ((1.0, 2.0), (5.0, 0.0), (1.0, 0.5)):
        updates, state = tx.update({"w": g}, state, weight=weight)
    assert updates["w"] == -2.5
    tx = MultiSteps(sgd(1.0), 1)
    assert tx.update({"w": 3.0}, tx.init({"w": 0.0}), weight=0.0)[0]["w"] == 0.0


@pytest.mark.parametrize("weight, error", [(-1, ValueError), (jnp.ones(2), TypeError), (None, TypeError)])
def test_what_is_no_weight(weight, error):
    tx = MultiSteps(sgd(1.0), 2)
    with pytest.raises(error, match="weight must be"):
        tx.update({"w": 1.0}, tx.init({"w": 0.0}), weight=weight)


def test_skipped_mini_steps_have_no_weight():
    tx = MultiSteps(sgd(1.0), 2, should_skip_update_fn=skip_not_finite)
    state = tx.init({"w": 0.0})
    for g, weight in ((1.0, 1), (np.nan, 100), (3.0, 3)):
        updates, state = tx.update({"w": g}, state, weight=weight)
    assert updates["w"] == -2.5


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_flush_closes_a_partial_window(done):
    params, grads = make_params("bfloat16"), make_grads(3, "bfloat16")
    tx = MultiSteps(sgd(1.0), 3)
    state = tx.init(params)
    for i in range(done):
        _, state = tx.update(at(grads, i), state, params)
    updates, after = jax.jit(tx.flush)(state, params)
    assert_same_types(updates, params)
    assert_same_types(after, state)
    partial = 0 < done < 3
    expected = jax.tree.map(lambda g: -g[:done].astype("float32").mean(0) if partial else 0 * g[0], grads)
    assert_close(updates, expected, rtol=0.01, atol=1e-6)
    assert int(after.mini_step) == 0 and int(after.gradient_step) == int(done > 0)
    assert_close(after.acc_grads, jax.tree.map(jnp.zeros_like, after.acc_grads))
