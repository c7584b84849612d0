"""AdamC's decay: its amount, for other optimizers, for single leaves, and the ratio that it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

RATE = fo.linear_schedule(0.02, 0.0, 10)


def shrinkage(tx, params, steps=10):
    """By how much of itself each leaf shrinks at every step, without gradients."""
    state, zeros, found = tx.init(params), jax.tree.map(jnp.zeros_like, params), []
    for _ in range(steps):
        u, state = tx.update(zeros, state, params)
        found.append(jax.tree.map(lambda u, w: float((-u / w).mean()), u, params))
    return jax.tree.map(lambda *x: np.array(x), *found)


PARAMS = {"kernel": jnp.ones((3, 3)), "head": {"kernel": jnp.ones((3, 2))}}
FALLING = 0.02 * (1 - np.arange(10) / 10)


def test_the_decay_falls_as_the_square_of_the_rate():
    found = shrinkage(fo.adamc(RATE, 0.02, weight_decay=0.1), PARAMS)
    np.testing.assert_allclose(found["kernel"], 0.1 * FALLING**2 / 0.02, atol=1e-8)


def test_groups_give_a_layer_the_decay_of_adamw():
    tx = fo.groups(fo.adamc(RATE, 0.02, weight_decay=0.1), {"head/*": {"weight_decay": 0.1}})
    found = shrinkage(tx, PARAMS)
    np.testing.assert_allclose(found["head"]["kernel"], 0.1 * FALLING, atol=1e-8)
    np.testing.assert_allclose(found["kernel"], 0.1 * FALLING**2 / 0.02, atol=1e-8)


def test_muon_takes_the_same_decay():
    tx = fo.muon(RATE, weight_decay=fo.proportional_schedule(0.1, RATE, 0.02))
    np.testing.assert_allclose(shrinkage(tx, PARAMS)["kernel"], 0.1 * FALLING**2 / 0.02, atol=1e-8)


def test_weights_before_a_normalization_keep_the_ratio_of_their_gradients():
    """The loss does not depend on the norm of w; AdamW lets the gradients grow as the rate falls."""
    steps, peak = 4000, 0.01
    rate = fo.linear_schedule(peak, 0.2 * peak, 2000, 2000)
    noise = np.random.default_rng(0).normal(size=(steps, 50)).astype("float32")

    def ratios(tx):
        def step(carry, z):
            w, state = carry
            norm = jnp.linalg.norm(w)
            g = (z - w * (w @ z) / norm**2) / norm
            u, state = tx.update(g, state, w)
            return (fo.apply_updates(w, u), state), jnp.linalg.norm(g) / norm

        w = jnp.ones(50)
        _, found = jax.jit(lambda: jax.lax.scan(step, (w, tx.init(w)), noise))()
        return float(jnp.mean(found[-200:]) / jnp.mean(found[1800:2000]))

    plain = ratios(fo.adamw(rate, weight_decay=2.0))
    assert ratios(fo.adamc(rate, peak, weight_decay=2.0)) < 0.5 * plain


def test_the_peak_is_positive():
    with pytest.raises(ValueError, match="peak_learning_rate"):
        fo.adamc(RATE, 0.0)
