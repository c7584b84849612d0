"""Sophia beyond the table of cases: Hutchinson's estimates and what it prints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functional_opt as fo

from ..helpers import assert_close, make_params

RNG = np.random.default_rng(0)
HESSIAN = np.diag([1.0, 2.0, 3.0]) + 0.1


def loss(params):
    w = jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)])
    return jnp.sum(jnp.cos(w)) + jnp.prod(w[:2])


def bowl(w):
    return w @ HESSIAN @ w / 2


def test_follows_optax_with_its_random_numbers():
    params = theirs = make_params()
    tx, peer = fo.sophia(0.1, gamma=0.5), optax.contrib.sophia(0.1, gamma=0.5)
    state, peer_state = tx.init(params), peer.init(params)

    @jax.jit
    def step(params, state, theirs, peer_state):
        u, state = tx.update(jax.grad(loss)(params), state, params, obj_fn=loss)
        v, peer_state = peer.update(jax.grad(loss)(theirs), peer_state, theirs, obj_fn=loss)
        return fo.apply_updates(params, u), state, optax.apply_updates(theirs, v), peer_state

    for _ in range(25):
        params, state, theirs, peer_state = step(params, state, theirs, peer_state)
    assert_close(params, theirs, rtol=1e-5)
    assert_close(state[0].nu, peer_state[0].nu, rtol=1e-5, atol=1e-7)


def test_the_mean_of_the_estimates_is_the_diagonal():
    w = jnp.array([1.0, -1.0, 0.5])
    tx = fo.hutchinson_estimator_diag_hessian()

    def estimate(state, _):
        u, state = tx.update(w, state, w, obj_fn=bowl)
        return state, u

    _, estimates = jax.lax.scan(estimate, tx.init(w), length=2000)
    np.testing.assert_allclose(estimates.mean(axis=0), np.diag(HESSIAN), atol=0.02)
    assert estimates.std(axis=0).min() > 0.05


def test_a_key_gives_other_signs_and_outlives_a_donated_state():
    key = jax.random.key(7)
    tx, w = fo.hutchinson_estimator_diag_hessian(key), jnp.array([1.0, -1.0, 0.5])
    first, _ = tx.update(w, tx.init(w), w, obj_fn=bowl)
    step = jax.jit(lambda state: tx.update(w, state, w, obj_fn=bowl), donate_argnums=0)
    again, _ = step(tx.init(w))
    assert_close(again, first, rtol=1e-6)
    assert not jax.random.key_data(key).is_deleted()


@pytest.mark.parametrize("tx", [fo.sophia(0.1), fo.hutchinson_estimator_diag_hessian()], ids=["sophia", "estimator"])
def test_without_the_loss_there_is_an_error(tx):
    w = jnp.ones(2)
    with pytest.raises(ValueError, match="needs the loss"):
        tx.update(w, tx.init(w), w)
    with pytest.raises(ValueError, match="needs the params"):
        tx.update(w, tx.init(w), obj_fn=jnp.sum)


def test_prints_how_many_are_not_clipped(capfd):
    tx, w = fo.scale_by_sophia(eps=1.0, verbose=True, print_win_rate_every_n_steps=2), jnp.ones(4)
    state = tx.init(w)
    for _ in range(4):
        _, state = tx.update(jnp.array([0.5, 0.1, 2.0, 0.0]), state, w, obj_fn=jnp.sum)
    jax.effects_barrier()
    lines = capfd.readouterr().out.splitlines()
    assert lines == [f"Sophia: 0.750 of the updates not clipped at step {t}" for t in (2, 4)]


def test_leaves_that_are_not_trained_are_constants_of_the_loss():
    """A whole number, whose gradient is float0, and a leaf without a gradient."""
    params = {"w": jnp.array([1.0, 2.0]), "power": jnp.int32(2), "fixed": jnp.array(3.0)}

    def loss(p):
        return p["fixed"] * jnp.sum(p["w"] ** p["power"])

    grads = jax.grad(loss, allow_int=True)(params) | {"fixed": None}
    for tx in (fo.hutchinson_estimator_diag_hessian(), fo.scale_by_sophia()):
        updates, _ = tx.update(grads, tx.init(params), params, obj_fn=loss)
        assert updates["power"] is None and updates["fixed"] is None and np.isfinite(updates["w"]).all()
    estimate, _ = fo.hutchinson_estimator_diag_hessian().update(grads, tx.init(params)[-1], params, obj_fn=loss)
    np.testing.assert_allclose(estimate["w"], [6.0, 6.0])
