"""The backtracking line search: Armijo's condition, what it does when it fails, the loss that it may reuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functional_opt as fo

from ...helpers import assert_close

W = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}


def loss(w, curvature=10.0):
    return jnp.sum(w["a"] ** 2) + curvature * w["b"] ** 2


def run(tx, steps, f=loss, w=W, **extra):
    """Params, state and the value after some steps, compiled."""

    @jax.jit
    def step(w, state):
        value, grad = jax.value_and_grad(f)(w)
        updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=f, **extra)
        return fo.apply_updates(w, updates), state

    state = tx.init(w)
    for _ in range(steps):
        w, state = step(w, state)
    return w, state


@pytest.mark.parametrize(
    "args",
    [
        {"max_backtracking_steps": 20},
        {"max_backtracking_steps": 2},
        {"max_backtracking_steps": 20, "increase_factor": float("inf"), "max_learning_rate": 0.5},
        {"max_backtracking_steps": 20, "slope_rtol": 0.5, "rtol": 0.1, "atol": 0.1, "decrease_factor": 0.5},
        {"max_backtracking_steps": 20, "store_grad": True},
    ],
    ids=repr,
)
def test_steps_are_those_of_optax(args):
    ours, state = run(fo.chain(fo.sgd(1.0), fo.scale_by_backtracking_linesearch(**args)), 4)
    peer, peer_state = run(optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(**args)), 4)
    assert_close(ours, peer, rtol=1e-5)
    for name in ("learning_rate", "value", "grad"):
        assert_close(getattr(state[1], name), getattr(peer_state[1], name), rtol=1e-5, atol=1e-6)
    assert int(state[1].info.num_linesearch_steps) == int(peer_state[1].info.num_linesearch_steps)


@pytest.mark.parametrize("slope_rtol", [1e-4, 0.3, 0.9])
def test_the_first_guess_with_sufficient_decrease(slope_rtol):
    tx = fo.chain(fo.sgd(1.0), fo.scale_by_backtracking_linesearch(40, slope_rtol, decrease_factor=0.7))
    w, state = run(tx, 1)
    value, grad = jax.value_and_grad(loss)(W)
    square = fo.global_norm(grad) ** 2

    def enough(rate):
        return loss(jax.tree.map(lambda w, g: w - rate * g, W, grad)) <= value - slope_rtol * rate * square

    k = next(k for k in range(40) if enough(0.7**k))
    np.testing.assert_allclose(state[1].learning_rate, 0.7**k, rtol=1e-5)
    assert int(state[1].info.num_linesearch_steps) == k + 1 and float(state[1].info.decrease_error) == 0


def test_after_a_loss_that_is_not_finite_it_starts_again():
    """Optax's rate is 0 from then on."""
    tx = fo.chain(fo.sgd(1.0), fo.scale_by_backtracking_linesearch(3, increase_factor=2.0, max_learning_rate=0.5))
    w, state = run(tx, 1, lambda w: jnp.where(w["b"] == 3.0, loss(w), jnp.nan))
    assert_close(w, W)
    assert float(state[1].learning_rate) == 0 and float(state[1].value) == loss(W)
    value, grad = jax.value_and_grad(loss)(W)
    _, state = tx.update(grad, state, W, value=value, grad=grad, value_fn=lambda w: jnp.zeros([]) - 1e4)
    assert float(state[1].learning_rate) == 0.5


def test_the_loss_gets_the_arguments_it_takes():
    tx = fo.chain(fo.sgd(1.0), fo.scale_by_backtracking_linesearch(20))
    value, grad = jax.value_and_grad(loss)(W, 1.0)
    _, state = tx.update(grad, tx.init(W), W, value=value, grad=grad, value_fn=loss, curvature=1.0, other=None)
    np.testing.assert_allclose(state[1].value, loss(jax.tree.map(lambda w, g: w - 0.8 * g, W, grad), 1.0), rtol=1e-6)


def test_value_and_grad_are_reused():
    tx = fo.chain(fo.sgd(1.0), fo.scale_by_backtracking_linesearch(20, store_grad=True))
    w, state = run(tx, 3)
    value_and_grad = fo.value_and_grad_from_state(loss)
    value, grad = value_and_grad(w, state=state)
    expected, expected_grad = jax.value_and_grad(loss)(w)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_close(grad, expected_grad, rtol=1e-6, atol=1e-6)
    value, _ = value_and_grad(w, state=fo.tree.set(state, value=jnp.array(7.0)))
    assert value == 7.0  # what the state says
    value, _ = value_and_grad(w, state=tx.init(w))
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_refuses():
    tx = fo.scale_by_backtracking_linesearch(3)
    with pytest.raises(ValueError, match="needs the params"):
        tx.update(W, tx.init(W))
    with pytest.raises(ValueError, match="needs grad and value_fn: call update"):
        tx.update(W, tx.init(W), W, value=1.0)
    with pytest.raises(ValueError, match="needs the state of a line search that keeps the gradient"):
        fo.value_and_grad_from_state(loss)(W, state=tx.init(W))


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"value_fn": 1.0}, TypeError, "value_fn must be the loss as a function of the params, got 1.0"),
        ({"value_fn": lambda w: w}, ValueError, "value_fn must return the loss, a scalar, got a dict"),
        (
            {"value_fn": lambda w: jnp.ones(3)},
            ValueError,
            r"value_fn must return the loss, a scalar, got shape \(3,\)",
        ),
        ({"value": jnp.ones(3)}, ValueError, r"value must be the loss, a scalar, got shape \(3,\): take the mean"),
    ],
)
def test_what_is_no_loss(given, error, message):
    value, grad = jax.value_and_grad(loss)(W)
    for tx in (fo.scale_by_backtracking_linesearch(3), fo.scale_by_zoom_linesearch(3)):
        with pytest.raises(error, match=message):
            tx.update(grad, tx.init(W), W, **(dict(value=value, grad=grad, value_fn=loss) | given))


@pytest.mark.parametrize("tx", [fo.momo(), fo.momo_adam(), fo.polyak_sgd(), fo.reduce_on_plateau()], ids=str)
def test_a_loss_by_example_is_refused(tx):
    with pytest.raises(ValueError, match=r"value must be the loss, a scalar, got shape \(4,\): take the mean"):
        tx.update(W, tx.init(W), W, value=jnp.ones(4))
