"""SOAP-Muon: orthogonal steps at Muon's scale, whatever SOAP's sizes are, and the first step."""

import jax.numpy as jnp
import numpy as np

import functional_opt as fo

from ..helpers import train_compiled

RNG = np.random.default_rng(0)


def test_its_steps_are_orthogonal():
    grads = {"kernel": jnp.asarray(RNG.standard_normal((40, 4, 8)) * [[10.0], [1.0], [0.1], [1.0]], "float32")}
    rows = [(3.4445, -4.7750, 2.0315)] * 5 + [(1.5, -0.5, 0.0)] * 4  # cubic ones, as in the authors' code
    tx = fo.soap_muon(1.0, ns_coeffs=rows, precondition_frequency=2)
    _, updates, _ = train_compiled(tx, {"kernel": jnp.ones((4, 8))}, grads)
    last = np.asarray(updates["kernel"][-1])
    np.testing.assert_allclose(last @ last.T, 2 * np.eye(4), atol=0.01)  # √(8 / 4) as a map from inputs to outputs
    assert np.all(np.asarray(updates["kernel"][0]) == 0)  # the first gradient only makes the bases


def test_it_whitens_better_than_muon():
    """Noise is 30 times as large in one row; SOAP evens the rows out before they are orthogonalized."""
    signal = RNG.standard_normal((6, 6))
    noise = RNG.standard_normal((400, 6, 6)) * np.array([30.0, 1, 1, 1, 1, 1])[:, None]
    grads = {"kernel": jnp.asarray(signal + noise, "float32")}
    u, _, vt = np.linalg.svd(signal[1:])
    goal, found = u @ vt[:5], {}
    for make in (fo.muon, fo.soap_muon):
        _, updates, _ = train_compiled(make(1.0), {"kernel": jnp.ones((6, 6))}, grads)
        steps = -np.asarray(updates["kernel"])[200:, 1:]
        found[make] = np.mean(np.sum(steps * goal, axis=(1, 2)))
    assert found[fo.soap_muon] > found[fo.muon]
