"""ema_nesterov beyond the table of cases: the params to evaluate with, schedules, and that it trains faster."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ...helpers import train_compiled


def test_the_params_to_evaluate_are_those_without_the_lookahead():
    """Those that the optimizer's steps end at, here with a lookahead that follows the learning rate."""
    rate, grads = fo.linear_schedule(0.1, 0.0, 20), np.random.default_rng(0).normal(size=(20, 5)).astype("float32")
    tx = fo.ema_nesterov(fo.sgd(rate), fo.proportional_schedule(0.6, rate, 0.1), 0.9)
    y, state = jnp.ones(5), tx.init(jnp.ones(5))
    x, m = np.ones(5), np.zeros(5)
    for t, g in enumerate(grads):
        u, state = tx.update(g, state, y)
        y = fo.apply_updates(y, u)
        before, x = x, x + 0.6 * (1 - t / 20) * m - 0.1 * (1 - t / 20) * g
        m = 0.9 * m + 0.1 * (x - before)
        np.testing.assert_allclose(fo.eval_params(state, y), x, rtol=1e-5)
    np.testing.assert_allclose(y, x, rtol=1e-5)  # the lookahead has fallen to 0


def test_without_a_lookahead_it_is_the_optimizer():
    grads = np.random.default_rng(1).normal(size=(9, 5)).astype("float32")
    path, _, _ = train_compiled(fo.ema_nesterov(fo.adam(0.1), 0.0), jnp.ones(5), grads)
    expected, _, _ = train_compiled(fo.adam(0.1), jnp.ones(5), grads)
    np.testing.assert_allclose(path, expected, rtol=1e-6)


def test_steps_before_the_start_and_after_the_end_have_none():
    tx, w = fo.ema_nesterov(fo.sgd(1.0), 1.0, 0.5, start_step=2, end_step=4), jnp.zeros(1)
    state, ahead = tx.init(w), []
    for _ in range(5):
        u, state = tx.update(jnp.ones(1), state, w)
        w = fo.apply_updates(w, u)
        ahead.append(bool(jnp.any(w != fo.eval_params(state, w))))
    assert ahead == [False, True, True, False, False]  # the gradients of steps 2 and 3


def test_it_trains_faster_along_a_valley():
    curvature = jnp.array([1.0, 100.0])

    def loss_after(tx):
        def step(carry, _):
            w, state = carry
            u, state = tx.update(curvature * w, state, w)
            return (fo.apply_updates(w, u), state), None

        w = jnp.ones(2)
        (w, state), _ = jax.lax.scan(step, (w, tx.init(w)), length=200)
        return jnp.sum(curvature * fo.eval_params(state, w) ** 2)

    assert loss_after(fo.ema_nesterov(fo.sgd(0.01), 0.8, 0.5)) < 0.1 * loss_after(fo.sgd(0.01))


def test_it_needs_params():
    tx = fo.ema_nesterov(fo.sgd(0.1))
    with pytest.raises(ValueError, match="params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
