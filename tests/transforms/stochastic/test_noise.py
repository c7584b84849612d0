"""add_noise: Optax's numbers, its variance over the steps, what a key may be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functional_opt as fo

from ...helpers import assert_close, at, make_grads, make_params, train_compiled

KEYS = {
    "an integer": 3,
    "a key": jax.random.key(3),
    "an old key": jax.random.PRNGKey(3),
    "an array": jnp.int32(3),
}


@pytest.mark.parametrize("make, peer", [(fo.noisy_sgd, optax.noisy_sgd)], ids=["noisy_sgd"])
def test_draws_what_optax_draws(make, peer):
    args = {"learning_rate": 0.1, "eta": 0.5, "key": 3}
    params, _, state = train_compiled(make(**args), make_params(), make_grads(5))
    expected, _, peer_state = train_compiled(peer(**args), make_params(), make_grads(5))
    assert_close(params, expected, rtol=1e-6)
    assert state[0].rng_key.tolist() == jax.random.key_data(peer_state[0].rng_key).tolist()


def noise(tx, steps=1):
    """What is added to zeros at the last step."""
    zeros = {"w": jnp.zeros(4000)}
    state = tx.init(zeros)
    for _ in range(steps):
        u, state = tx.update(zeros, state)
    return u["w"]


@pytest.mark.parametrize("steps", [1, 3])
def test_variance_fades(steps):
    z = noise(fo.add_noise(0.25, 2.0, key=0), steps)
    np.testing.assert_allclose(z.std(), 0.5 / steps, rtol=0.05)
    np.testing.assert_allclose(z.mean(), 0.0, atol=0.05 / steps)


@pytest.mark.parametrize("what", KEYS)
def test_one_seed_in_every_form(what):
    tx = fo.add_noise(1.0, 0.55, KEYS[what])
    assert_close(noise(tx), noise(fo.add_noise(1.0, 0.55, seed=3)))
    assert tx == fo.add_noise(1.0, 0.55, KEYS[what]) and hash(tx) == hash(fo.add_noise(1.0, 0.55, KEYS[what]))
    assert tx != fo.add_noise(1.0, 0.55, jax.random.key(4))


def test_another_generator():
    tx = fo.add_noise(1.0, 0.0, jax.random.key(3, impl="rbg"))
    first, second = noise(tx), noise(tx, 2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert_close(noise(tx), first)


def test_sweep_over_seeds_is_one_compilation():
    z = jax.jit(jax.vmap(lambda seed: noise(fo.add_noise(1.0, 0.55, seed))))(jnp.arange(2))
    assert_close(z[1], noise(fo.add_noise(1.0, 0.55, 1)), rtol=1e-6)
    assert not np.allclose(z[0], z[1])


def test_a_leaf_without_gradient_changes_no_other():
    tx, grads = fo.add_noise(1.0, 0.55, 0), at(make_grads(1), 0)
    expected, _ = tx.update(grads, tx.init(grads))
    updates, _ = tx.update({**grads, "dense": {**grads["dense"], "bias": None}}, tx.init(grads))
    assert updates["dense"]["bias"] is None
    assert_close(updates["scale"], expected["scale"])


def test_refuses():
    with pytest.raises(ValueError, match="a key or a seed, not both"):
        fo.add_noise(1.0, 0.55, 1, seed=2)
    with pytest.raises(TypeError, match="key must be an integer or a key of jax.random, got 0.5"):
        fo.add_noise(1.0, 0.55, 0.5)
    with pytest.raises(TypeError, match="seed must be an integer or a key of jax.random, got 'a'"):
        fo.noisy_sgd(0.1, seed="a")
