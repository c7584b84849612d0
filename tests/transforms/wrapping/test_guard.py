"""apply_if_finite: bad steps are skipped as a whole, a few in a row."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from functional_opt import adam, apply_if_finite, scale, sgd

from ...helpers import assert_close, at, make_grads, make_params, train, train_compiled, without_bias


def spoil(grads, steps, bad):
    """The gradients with one bad element at some of the steps."""
    kernel = grads["dense"]["kernel"].at[jnp.array(steps), 1, 1].set(bad)
    return {**grads, "dense": {**grads["dense"], "kernel": kernel}}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_step_never_was(bad):
    params, grads = make_params(), make_grads(5)
    _, updates, state = train(apply_if_finite(adam(0.1), 3), params, spoil(grads, [1, 3], bad))
    good = jax.tree.map(lambda g: g[jnp.array([0, 2, 4])], grads)
    _, expected, expected_state = train(adam(0.1), params, good)
    assert_close(jax.tree.map(lambda u: u[jnp.array([0, 2, 4])], updates), expected, rtol=1e-6)
    for step in (1, 3):
        assert_close(at(updates, step), jax.tree.map(jnp.zeros_like, params))
    assert_close(state.inner_state, expected_state, rtol=1e-6)
    assert (int(state.notfinite_count), bool(state.last_finite), int(state.total_notfinite)) == (0, True, 2)


def test_as_in_optax_when_bad_steps_go_on():
    """After `max_consecutive_errors` in a row one is let through."""
    params, grads = make_params(), spoil(make_grads(8), [1, 2, 3, 4, 6], np.nan)
    ours, theirs = (train_compiled(o(sgd(0.1), 2), params, grads) for o in (apply_if_finite, optax.apply_if_finite))
    assert_close(ours[1], theirs[1], rtol=1e-6)
    assert_close(tuple(ours[2])[:3], tuple(theirs[2])[:3])
    assert bool(jnp.isnan(ours[1]["dense"]["kernel"][3]).any()) and not bool(jnp.isnan(ours[1]["scale"]).any())


def test_no_patience_lets_the_first_one_through():
    tx = apply_if_finite(scale(1.0), 0)
    updates, state = tx.update({"w": jnp.array(jnp.nan)}, tx.init({"w": 0.0}))
    assert jnp.isnan(updates["w"]) and int(state.notfinite_count) == 1


def test_none_leaves():
    tx, params = apply_if_finite(adam(0.1), 2), make_params()
    for grads in (make_grads(1), spoil(make_grads(1), [0], np.nan)):
        updates, _ = tx.update(without_bias(at(grads, 0)), tx.init(params), params)
        assert updates["dense"]["bias"] is None


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: apply_if_finite(sgd(0.1), -1), ValueError, r"max_consecutive_errors must be in \[0, inf\), got -1"),
        (lambda: apply_if_finite(sgd(0.1), 1.5), TypeError, "max_consecutive_errors must be a whole number"),
        (lambda: apply_if_finite(sgd, 1), TypeError, r"inner must be a gradient .* call it: sgd\(...\)"),
    ],
)
def test_what_is_no_guard(make, error, message):
    with pytest.raises(error, match=message):
        make()
