"""FTRL beyond the table of cases: zeros, and a learning rate that it divides by."""

import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ..helpers import train_compiled


def test_l1_sets_weights_to_exactly_zero():
    """A gradient that one weight has and the other has not, with noise."""
    noise = np.random.default_rng(0).standard_normal((200, 2)) * 0.1
    grads = jnp.asarray(noise + np.array([1.0, 0.0]), "float32")
    params, _, _ = train_compiled(fo.ftrl(0.1, l1=5.0), jnp.zeros(2), grads)
    assert params[-1, 0] < -0.1 and params[-1, 1] == 0


def test_a_weight_without_gradients_becomes_zero():
    params, _, _ = train_compiled(fo.ftrl(0.1), jnp.ones(2), jnp.array([[0.0, 1.0]] * 3))
    assert params[0, 0] == 0 and params[-1, 1] != 0


def test_no_power_is_gradient_descent_from_zero():
    grads = jnp.asarray(np.random.default_rng(0).standard_normal((10, 3)), "float32")
    params, _, _ = train_compiled(fo.ftrl(0.1, learning_rate_power=0.0), jnp.zeros(3), grads)
    expected, _, _ = train_compiled(fo.sgd(0.1), jnp.zeros(3), grads)
    np.testing.assert_allclose(params, expected, rtol=1e-5, atol=1e-6)


def test_a_schedule_is_followed():
    grads = jnp.ones((3, 1))
    fixed, _, _ = train_compiled(fo.ftrl(0.5), jnp.ones(1), grads)
    params, _, state = train_compiled(fo.ftrl(fo.piecewise_constant_schedule(0.5, {2: 0.1})), jnp.ones(1), grads)
    np.testing.assert_array_equal(params[:2], fixed[:2])
    assert params[2] != fixed[2] and state.count == 3


@pytest.mark.parametrize("args", [{"learning_rate": 0.0}, {"learning_rate_power": 0.5}, {"l1": -1.0}], ids=repr)
def test_what_is_out_of_range_is_named(args):
    with pytest.raises(ValueError, match=f"{next(iter(args))} must be in"):
        fo.ftrl(**({"learning_rate": 0.1} | args))


def test_params_are_needed():
    tx = fo.ftrl(0.1)
    with pytest.raises(ValueError, match="ftrl needs the params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_a_rate_of_zero_makes_no_step():
    """In the middle of a schedule: as if that step, and its gradient, had not been."""
    rates = [0.1, 0.0, 0.2, 0.0]
    tx, w = fo.ftrl(lambda count: jnp.array(rates)[count], l1=0.01, beta=0.1), jnp.array([1.0, -2.0])
    state = tx.init(w)
    for count, rate in enumerate(rates):
        updates, after = tx.update(jnp.array([0.5, 1e-3]), state, w)
        if rate == 0:
            assert not updates.any() and int(after.count) == count + 1
            assert (after.linear == state.linear).all() and (after.accumulator == state.accumulator).all()
        else:
            assert np.isfinite(updates).all() and updates.any()
        w, state = w + updates, after


def test_an_overflow_touches_its_element_only():
    grads = jnp.array([[1.0, 1.0], [1e30, 1.0], [1.0, 1.0]])
    params, _, state = train_compiled(fo.ftrl(0.1), jnp.ones(2), grads)
    expected, _, _ = train_compiled(fo.ftrl(0.1), jnp.ones(2), jnp.ones((3, 2)))
    np.testing.assert_allclose(params[:, 1], expected[:, 1], rtol=1e-6)
    np.testing.assert_allclose(params[-1, 0], expected[1, 0], rtol=1e-6)
    assert np.isfinite(state.linear).all() and np.isfinite(state.accumulator).all()
