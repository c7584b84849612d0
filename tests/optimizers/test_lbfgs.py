"""L-BFGS: the inverse Hessian of the paper, Optax's numbers, and what it does where the curvature is negative."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functional_opt as fo

from ..helpers import assert_close

RNG = np.random.default_rng(0)
ROOT = RNG.standard_normal((5, 5))
HESSIAN = ROOT @ ROOT.T + np.eye(5)
PARAMS = RNG.standard_normal((9, 5))
GRADS = PARAMS @ HESSIAN


def tree(x):
    """Five numbers in two leaves."""
    return {"a": jnp.asarray(x[:4]).reshape(2, 2), "b": jnp.asarray(x[4])}


def flat(t):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)])


def directions(tx, params, grads):
    state, found = tx.init(tree(params[0])), []
    update = jax.jit(tx.update)
    for w, g in zip(params, grads, strict=True):
        u, state = update(tree(g), state, tree(w))
        found.append(flat(u))
    return np.stack(found), state


def by_the_paper(params, grads, memory_size, scale_init_precond):
    """Nocedal & Wright 2006, equations 7.16 to 7.20, with the matrices written out."""
    for t, g in enumerate(grads):
        pairs = [(params[i] - params[i - 1], grads[i] - grads[i - 1]) for i in range(1, t + 1)][-memory_size:]
        pairs = [(s, y) for s, y in pairs if s @ y > 0]
        s, y = pairs[-1] if pairs else (g, g * max(1.0, np.linalg.norm(g)))
        inverse = np.eye(5) * (s @ y / (y @ y) if scale_init_precond else 1.0)
        for s, y in pairs:
            v = np.eye(5) - np.outer(y, s) / (s @ y)
            inverse = v.T @ inverse @ v + np.outer(s, s) / (s @ y)
        yield inverse @ g


@pytest.mark.parametrize("scale_init_precond", [True, False])
@pytest.mark.parametrize("memory_size", [1, 3, 10])
def test_is_the_formula(memory_size, scale_init_precond):
    args = (memory_size, scale_init_precond)
    with jax.enable_x64(True):
        ours, state = directions(fo.scale_by_lbfgs(*args), PARAMS, GRADS)
        peer, peer_state = directions(optax.scale_by_lbfgs(*args), PARAMS, GRADS)
        np.testing.assert_allclose(ours, list(by_the_paper(PARAMS, GRADS, *args)), rtol=1e-9)
        np.testing.assert_allclose(ours, peer, rtol=1e-9)
        assert_close(list(state), list(peer_state), rtol=1e-12)


@pytest.mark.parametrize("scale_init_precond", [True, False])
def test_negative_curvature_is_left_out(scale_init_precond):
    """Gradients that fall where they should rise: Optax's direction leads uphill at some of these steps."""
    grads = GRADS.copy()
    for t in (1, 4, 5):
        grads[t] = grads[t - 1] - 2 * (PARAMS[t] - PARAMS[t - 1])
    with jax.enable_x64(True):
        ours, state = directions(fo.scale_by_lbfgs(3, scale_init_precond), PARAMS, grads)
        expected = list(by_the_paper(PARAMS, grads, 3, scale_init_precond))
        np.testing.assert_allclose(ours, expected, rtol=1e-9)
    assert np.all(np.sum(ours * grads, axis=1) > 0)
    assert np.all(np.asarray(state.weights_memory) >= 0)


def test_needs_params():
    tx = fo.scale_by_lbfgs()
    with pytest.raises(ValueError, match="scale_by_lbfgs needs the params"):
        tx.update(tree(GRADS[0]), tx.init(tree(PARAMS[0])))
