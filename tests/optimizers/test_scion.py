"""Scion beyond the table of cases: which leaf has which norm, and the size of a step in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ..helpers import at, make_grads, make_params

PARAMS = {
    "embed": np.ones((5, 4)),
    "layer": {"kernel": np.ones((3, 4)), "bias": np.ones(4), "gain": np.ones(())},
    "conv": np.ones((2, 3, 4)),
    "head": np.ones((4, 6)),
}
KERNEL = np.random.default_rng(0).standard_normal((4, 6)).astype("float32")


def test_leaves_have_the_norms_of_their_places():
    routes = fo.describe(fo.scion(0.1), PARAMS).routes
    assert {route.path: route.labels[0] for route in routes} == {
        "conv": "rms",
        "embed": "per_input",
        "head": "sign",
        "layer/bias": "rms",
        "layer/gain": "rms",
        "layer/kernel": "spectral",
    }
    tx = fo.scion(0.1, norms={"head": "per_output", "**": "rms"})
    assert fo.describe(tx, PARAMS).routes[2].why == ("norms: rule 'head'",)


@pytest.mark.parametrize(
    "norm, size",
    [
        ("spectral", lambda u: np.linalg.norm(u, 2) / np.sqrt(6 / 4)),
        ("sign", lambda u: np.abs(u).max() * 4),
        ("sign", lambda u: np.abs(u).min() * 4),
        ("per_input", lambda u: np.sqrt(np.mean(u**2, axis=1))),
        ("per_output", lambda u: np.sqrt(np.sum(u**2, axis=0)) * np.sqrt(4)),
        ("rms", lambda u: np.sqrt(np.mean(u**2))),
    ],
)
def test_a_step_goes_to_the_edge_of_the_ball(norm, size):
    tx = fo.scale_by_scion(norms=norm, scale=2.0, sign_scale=2.0, ns_coeffs=(1.875, -1.25, 0.375), ns_steps=20)
    u, state = tx.update(jnp.asarray(KERNEL), tx.init(KERNEL))
    np.testing.assert_allclose(size(np.asarray(u)), 2.0, rtol=1e-5)
    assert np.sum(np.asarray(u) * KERNEL) > 0
    np.testing.assert_allclose(state.mu, 0.1 * KERNEL, rtol=1e-6)


@pytest.mark.parametrize("rules", [{"*/bias": "spectral", "**": "rms"}, {"*/bias": "l2", "**": "rms"}])
def test_norms_that_do_not_fit_are_named(rules):
    params = make_params()
    with pytest.raises(ValueError, match=r"norms has '\w+' for params\['dense'\]\['bias'\]"):
        fo.scale_by_scion(norms=rules).update(at(make_grads(1), 0), fo.scale_by_scion().init(params), params)


def test_constrained_weights_stay_in_the_ball():
    def step(carry, _):
        w, state = carry
        u, state = tx.update(KERNEL - 3.0, state, w)  # downhill is outwards
        return (w + u, state), None

    tx = fo.scion(0.1, norms="per_input", scale=2.0)
    (w, _), _ = jax.lax.scan(step, (jnp.zeros((4, 6)), tx.init(KERNEL)), length=200)
    np.testing.assert_allclose(np.sqrt(np.mean(w**2, axis=1)), 2.0, rtol=1e-4)
