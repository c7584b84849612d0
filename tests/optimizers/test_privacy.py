"""Private gradients beyond the table of cases: batches, what the noise is, keys, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functional_opt as fo

from ..helpers import assert_close


def batch(dtype="float32"):
    rng = np.random.default_rng(0)
    return {"a": jnp.asarray(rng.standard_normal((8, 3)), dtype), "b": jnp.asarray(rng.standard_normal(8), dtype)}


def test_the_mean_of_clipped_gradients_is_optaxs():
    args = {"l2_norm_clip": 1.5, "noise_multiplier": 0.0, "key": 0}
    tx, peer, like = fo.differentially_private_aggregate(**args), optax.contrib, {"a": jnp.zeros(3), "b": 0.0}
    peer = peer.differentially_private_aggregate(**args)
    expected, _ = peer.update(batch(), peer.init(like))
    assert_close(tx.update(batch(), tx.init(like))[0], expected, rtol=1e-6)
    half, _ = tx.update(batch("bfloat16") | {"b": None}, tx.init(like), like)
    assert half["b"] is None and half["a"].dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_noise_has_its_size_and_is_new_each_step(dtype):
    tx, zero = fo.differentially_private_aggregate(2.0, 3.0, key=jax.random.key(0)), jnp.zeros((4, 20_000), dtype)
    first, state = tx.update(zero, tx.init(zero[0]))
    second, _ = tx.update(zero, state)
    assert first.dtype == dtype
    for u in (first, second, first - second):
        sizes = np.std(np.asarray(u.real, np.float64)), np.std(np.asarray((1j * u).real, np.float64))
        expected = 1.5 * (2**0.5 if u is not first and u is not second else 1)
        np.testing.assert_allclose([x for x in sizes if x > 0], expected, rtol=0.03)


def test_a_seed_is_a_key():
    makers = [{"key": 7}, {"seed": 7}, {"key": jax.random.key(7)}, {"key": jax.random.PRNGKey(7)}]
    txs = [fo.differentially_private_aggregate(1.0, 1.0, **args) for args in makers]
    updates = [tx.update(batch(), tx.init(None))[0] for tx in txs]
    for u in updates[1:]:
        assert_close(u, updates[0])
    assert txs[2] == fo.differentially_private_aggregate(1.0, 1.0, key=jax.random.key(7)) != txs[0]
    hash(txs[2])


def test_dpsgd_takes_a_batch():
    tx, w = fo.dpsgd(0.1, 1.0, 0.0, seed=0, momentum=0.9), {"a": jnp.ones(3), "b": jnp.ones([])}
    updates, _ = jax.jit(tx.update)(batch(), tx.init(w), w)
    mean, _ = tx.transforms[0].update(batch(), tx.transforms[0].init(w))
    assert_close(updates, jax.tree.map(lambda u: -0.1 * u, mean), rtol=1e-6)


def test_errors():
    tx = fo.differentially_private_aggregate(1.0, 1.0, key=0)
    for bad in (jnp.zeros([]), jnp.zeros((7, 2))):
        with pytest.raises(ValueError, match=r"updates\['b'\] has shape .* needs a leading axis"):
            tx.update(batch() | {"b": bad}, tx.init(None))
    plain = {"a": jnp.ones(3), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"updates\['a'\] has shape \(3,\), .* one gradient for each example"):
        tx.update(plain, tx.init(plain), plain)
    with pytest.raises(ValueError, match="needs a key, such as key=0"):
        fo.differentially_private_aggregate(1.0, 1.0)
