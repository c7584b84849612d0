"""outer_steps and snoo: the formulas, their schedules, lookahead as a case, and the params to evaluate with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo
from functional_opt.core.queries import get


def trained(tx, grads, w):
    """The params after each step, and the last state."""

    def step(carry, g):
        w, state = carry
        u, state = tx.update(g, state, w)
        w = fo.apply_updates(w, u)
        return (w, state), w

    (_, state), path = jax.lax.scan(step, (w, tx.init(w)), grads)
    return np.asarray(path), state


def test_snoo_is_its_formula():
    grads, rate, momentum, k = np.random.default_rng(0).normal(size=(13, 5)).astype("float32"), 0.6, 0.4, 4
    path, state = trained(fo.snoo(fo.sgd(0.1), rate, momentum, k), grads, jnp.ones(5))
    w = slow = np.ones(5)
    m = np.zeros(5)
    for t, g in enumerate(grads):
        w = w - 0.1 * g
        if (t + 1) % k == 0:
            m = momentum * m + (slow - w)
            slow = w = slow - rate * (slow - w + momentum * m)
        np.testing.assert_allclose(path[t], w, rtol=1e-5)
    np.testing.assert_allclose(fo.eval_params(state, jnp.asarray(path[-1])), slow, rtol=1e-5)


def test_plain_descent_outside_is_lookahead():
    grads = np.random.default_rng(1).normal(size=(9, 5)).astype("float32")
    path, _ = trained(fo.outer_steps(fo.adam(0.1), fo.sgd(0.3), 4), grads, jnp.ones(5))
    expected, _ = trained(fo.lookahead(fo.adam(0.1), 4, 0.3), grads, jnp.ones(5))
    np.testing.assert_allclose(path, expected, rtol=1e-5)


def test_outer_schedules_count_outer_steps():
    rates = fo.piecewise_constant_schedule(1.0, {1: 0.5})
    path, state = trained(fo.outer_steps(fo.sgd(1.0), fo.sgd(rates), 2), np.ones((4, 1), "float32"), jnp.zeros(1))
    np.testing.assert_allclose(path[:, 0], [-1, -2, -3, -3])
    assert get(state.outer_state, "count") == 2


def test_it_trains_faster_along_a_valley():
    """Momentum over steps carries where single steps crawl: 100 times as steep across as along."""
    curvature = jnp.array([1.0, 100.0])

    def loss_after(tx):
        def step(carry, _):
            w, state = carry
            u, state = tx.update(curvature * w, state, w)
            return (fo.apply_updates(w, u), state), None

        w = jnp.ones(2)
        (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), length=200)
        return jnp.sum(curvature * w**2)

    plain = loss_after(fo.sgd(0.01))
    assert loss_after(fo.outer_steps(fo.sgd(0.01), fo.sgd(0.9, 0.6, nesterov=True), 10)) < 0.1 * plain


def test_a_period_is_a_whole_number():
    with pytest.raises(ValueError, match="sync_period"):
        fo.snoo(fo.sgd(0.1), sync_period=0)
