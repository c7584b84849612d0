"""sam beyond the table of cases: opaque mode, periods of one step, what runs when."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functional_opt as fo

from ...helpers import assert_close, make_params, rosenbrock, without_bias


def loss(params):
    w = jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)])
    return jnp.sum(jnp.cos(w)) + jnp.sum(w**2) / 3


def grad_fn(params, i):
    return jax.tree.map(lambda g: (1 + i) * g, jax.grad(loss)(params))


def build(o, opaque=True, **options):
    contrib = fo if o is fo else optax.contrib
    climb = o.chain(contrib.normalize(), o.sgd(0.05, momentum=0.5))
    return contrib.sam(o.adam(0.1), climb, opaque_mode=opaque, **options)


def run(tx, params, steps=4):
    state = tx.init(params)
    for _ in range(steps):
        u, state = tx.update(jax.grad(loss)(params), state, params, grad_fn=grad_fn)
        params = fo.apply_updates(params, u)
    return params, state


@pytest.mark.parametrize("reset", [True, False])
def test_opaque_mode_is_optax(reset):
    options = {"sync_period": 3, "reset_state": reset}
    params, state = run(build(fo, **options), make_params())
    theirs, peer_state = run(build(optax, **options), make_params())
    assert_close(params, theirs, rtol=1e-6)
    assert_close(jax.tree.leaves(state), jax.tree.leaves(peer_state), rtol=1e-5)


def test_a_transparent_period_is_an_opaque_step():
    transparent, _ = run(build(fo, opaque=False), make_params(), steps=6)
    opaque, _ = run(build(fo), make_params(), steps=3)
    assert_close(transparent, opaque, rtol=1e-6)


@pytest.mark.parametrize("opaque", [True, False])
def test_a_period_of_one_step_is_the_optimizer_alone(opaque):
    params, _ = run(build(fo, opaque, sync_period=1), make_params())
    alone, _ = run(fo.adam(0.1), make_params())
    assert_close(params, alone, rtol=1e-6)


def test_a_bad_gradient_uphill_leaves_the_optimizer_alone():
    tx, params = build(fo, opaque=False), make_params()
    state = tx.init(params)
    _, after = tx.update(jax.tree.map(lambda p: p * np.nan, params), state, params)
    assert_close((after.opt_state, after.cache), (state.opt_state, state.cache))


def test_opaque_mode_with_none_in_the_gradients():
    tx, params = build(fo), make_params()
    u, _ = tx.update(without_bias(jax.grad(loss)(params)), tx.init(params), params, grad_fn=grad_fn)
    assert u["dense"]["bias"] is None


def test_opaque_mode_averages_over_replicas():
    tx = build(fo, batch_axis_name="replica")
    batches, params = jnp.array([0.5, 1.5]), make_params()
    state, grads = tx.init(params), jax.grad(loss)(params)

    def step(scale):
        def of_replica(params, i):
            return jax.tree.map(lambda g: scale * g, jax.grad(loss)(params))

        return tx.update(grads, state, params, grad_fn=of_replica)[0]

    u = jax.vmap(step, axis_name="replica")(batches)
    mean, _ = build(fo).update(grads, state, params, grad_fn=grad_fn)
    assert_close(jax.tree.map(lambda x: x[0], u), mean, rtol=1e-5)


def test_without_the_gradient_there_is_an_error():
    tx, w = build(fo), jnp.ones(2)
    with pytest.raises(ValueError, match="needs the gradient"):
        tx.update(w, tx.init(w), w)
    with pytest.raises(ValueError, match="needs the params"):
        tx.update(w, tx.init(w), grad_fn=grad_fn)


def test_a_period_has_a_step():
    with pytest.raises(ValueError, match="sync_period must be in"):
        fo.sam(fo.sgd(0.1), fo.sgd(0.1), sync_period=0)


def test_comes_down_rosenbrocks_valley():
    start = jax.tree.map(lambda w: jnp.full(w.shape, -1.0), make_params())

    def descend(rate):
        tx = fo.sam(fo.adam(rate), fo.chain(fo.normalize(), fo.sgd(0.01)))

        def step(_, carry):
            params, state = carry
            updates, state = tx.update(jax.grad(rosenbrock)(params), state, params)
            return fo.apply_updates(params, updates), state

        return rosenbrock(jax.lax.fori_loop(0, 4000, step, (start, tx.init(start)))[0])

    losses = jax.jit(jax.vmap(descend))(jnp.array([0.1, 0.03, 0.01]))
    assert jnp.nanmin(losses) < 0.01 * rosenbrock(start)
