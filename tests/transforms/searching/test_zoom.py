"""The zoom line search and L-BFGS with it: Optax's steps, the Wolfe conditions, and what it does when it fails."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functional_opt as fo

from ...helpers import assert_close


def rosenbrock(w):
    return jnp.sum(100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2)


def quadratic(w):
    return jnp.sum(jnp.array([1.0, 10.0, 30.0, 3.0]) * w**2)


def steps(tx, f, w, n):
    @jax.jit
    def run(w):
        def step(carry, _):
            w, state = carry
            value, grad = jax.value_and_grad(f)(w)
            u, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=f)
            return (w + u, state), w + u

        return jax.lax.scan(step, (w, tx.init(w)), length=n)

    (_, state), path = run(w)
    return path, state


@pytest.mark.parametrize("f, n", [(rosenbrock, 25), (quadratic, 8)], ids=["rosenbrock", "quadratic"])
def test_lbfgs_takes_the_steps_of_optax(f, n):
    with jax.enable_x64(True):
        w = jnp.array([-1.2, 1.0, -0.5, 2.0])
        path, state = steps(fo.lbfgs(), f, w, n)
        peer_path, peer_state = steps(optax.lbfgs(), f, w, n)
        assert_close(path, peer_path, rtol=1e-6, atol=1e-9)
        assert_close(state[-1].learning_rate, peer_state[-1].learning_rate, rtol=1e-6)


@pytest.mark.parametrize(
    "args",
    [{"max_linesearch_steps": 30, "curv_rtol": 0.01}, {"max_linesearch_steps": 4, "curv_rtol": 1e-3, "tol": 1e-3}],
    ids=repr,
)
def test_searches_on_many_lines(args):
    """Some uphill, some that run out of steps; Optax's errors are those of the last step tried, not of that taken."""
    rng = np.random.default_rng(0)
    c, w, scale = np.abs(rng.normal(size=(300, 4))), 2 * rng.normal(size=300), 10 ** rng.uniform(-2, 1, 300)
    scale[:10] *= -1

    def run(o):
        def one(c, w, scale):
            f = lambda x: c[0] * x**2 + c[1] * jnp.sin(3 * x) + jnp.exp(-c[2] * x) + 0.1 * c[3] * x**4  # noqa: E731
            tx = o.scale_by_zoom_linesearch(**args)
            value, grad = jax.value_and_grad(f)(w)
            return tx.update(-scale * grad, tx.init(w), w, value=value, grad=grad, value_fn=f)

        return jax.jit(jax.vmap(one))(c, w, scale)

    with jax.enable_x64(True):
        (u, state), (peer_u, peer) = run(fo), run(optax)
    assert_close((u, *state[:3]), (peer_u, *peer[:3]), rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(state.info.num_linesearch_steps, peer.info.num_linesearch_steps)
    if args["max_linesearch_steps"] == 30:
        assert np.all(np.asarray(state.info.curvature_error)[10:] == 0)


def test_never_steps_to_an_infinite_loss():
    tx, w = fo.scale_by_zoom_linesearch(30), jnp.array(1.0)
    u, state = tx.update(jnp.array(-2.0), tx.init(w), w, value=0.0, grad=jnp.array(1.0), value_fn=jnp.log)
    assert np.isfinite(state.value) and 0 < state.learning_rate < 0.5
    assert_close(state.value, jnp.log(w + u), rtol=1e-6)


def test_refuses():
    tx, w = fo.scale_by_zoom_linesearch(3), jnp.ones(2)
    with pytest.raises(ValueError, match="scale_by_zoom_linesearch needs the params"):
        tx.update(w, tx.init(w))
    with pytest.raises(ValueError, match="scale_by_zoom_linesearch needs value and value_fn: call update"):
        tx.update(w, tx.init(w), w, grad=w)
