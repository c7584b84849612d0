"""qk_clip: what it does to the logits of real attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

POWERS = {"**/query/*": 0.5, "**/key/*": 0.5}
TX = fo.qk_clip(POWERS, threshold=2.0)


def attention(heads=4, key_heads=4):
    """Params of one layer, whose heads have ever larger logits, with a bias."""
    rng = np.random.default_rng(0)

    def dense(heads, scale=1.0):
        kernel, bias = rng.normal(size=(6, heads, 3)), rng.normal(size=(heads, 3))
        return {"kernel": jnp.asarray(kernel * scale, "float32"), "bias": jnp.asarray(bias * scale, "float32")}

    sizes = np.linspace(0.1, 1.0, heads)[:, None]
    return {"layer": {"query": dense(heads, sizes), "key": dense(key_heads), "value": dense(key_heads)}}


def largest_logits(params, x):
    layer = params["layer"]
    q, k = (jnp.einsum("ti,ihd->thd", x, layer[n]["kernel"]) + layer[n]["bias"] for n in ("query", "key"))
    k = jnp.repeat(k, q.shape[1] // k.shape[1], axis=1)
    return jnp.max(jnp.einsum("thd,shd->hts", q, k) / 3**0.5, (1, 2))


def stepped(tx, params, logits):
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(tx.update)(still, tx.init(params), params, max_logits={"layer": logits})
    return fo.apply_updates(params, updates)


@pytest.mark.parametrize("key_heads", [4, 2])
def test_logits_come_down_to_the_threshold(key_heads):
    params, x = attention(key_heads=key_heads), jnp.asarray(np.random.default_rng(1).normal(size=(9, 6)), "float32")
    before = largest_logits(params, x)
    assert jnp.min(before) < 2.0 < jnp.max(before)
    after = stepped(TX, params, before)
    if key_heads == 4:
        np.testing.assert_allclose(largest_logits(after, x), jnp.minimum(before, 2.0), rtol=1e-5)
    assert jnp.max(largest_logits(after, x)) <= 2.0 * (1 + 1e-5)
    np.testing.assert_array_equal(after["layer"]["value"]["kernel"], params["layer"]["value"]["kernel"])


def test_heads_below_the_threshold_take_the_step_as_it_is():
    params = attention()
    updates = jax.tree.map(lambda w: 0.1 * w, params)
    logits = jnp.array([1.0, jnp.nan, jnp.inf, 8.0])
    after, _ = TX.update(updates, TX.init(params), params, max_logits={"layer": logits})
    for name in "query", "key":
        for leaf in "kernel", "bias":
            u, g, w = (tree["layer"][name][leaf] for tree in (after, updates, params))
            np.testing.assert_array_equal(u[..., :3, :], g[..., :3, :])
            np.testing.assert_allclose(u[..., 3, :], (0.5 * (w + g) - w)[..., 3, :], rtol=1e-5, atol=1e-6)


def test_one_logit_for_all_heads():
    params = {"layer": {"query": {"kernel": jnp.ones((6, 12))}, "key": {"kernel": jnp.ones((6, 12))}}}
    after = stepped(TX, params, jnp.float32(8.0))
    np.testing.assert_allclose(after["layer"]["query"]["kernel"], 0.5 * jnp.ones((6, 12)), rtol=1e-6)


def test_training_with_muon_stays_below():
    """A loss that wants ever larger logits: MuonClip holds them."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(9, 6)), "float32")
    clipped = fo.chain(fo.muon(0.1), TX)

    def train(tx):
        def step(_, carry):
            params, state = carry
            grads = jax.grad(lambda p: -jnp.sum(largest_logits(p, x)))(params)
            extra = {"max_logits": {"layer": largest_logits(params, x)}}
            updates, state = tx.update(grads, state, params, **extra)
            return fo.apply_updates(params, updates), state

        params = attention()
        return largest_logits(jax.jit(lambda: jax.lax.fori_loop(0, 50, step, (params, tx.init(params)))[0])(), x)

    assert jnp.max(train(clipped)) < 4.0 < 20.0 < jnp.max(train(fo.muon(0.1)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: TX.update(p, TX.init(p), p), "max_logits"),
        (lambda p: TX.update(p, TX.init(p), max_logits=1.0), "needs the params"),
        (
            lambda p: TX.update(p, TX.init(p), p, max_logits={"decoder": 1.0}),
            "key/bias' is part of no attention",
        ),
        (lambda p: TX.update(p, TX.init(p), p, max_logits={"layer": jnp.ones(3)}), "is not 3 heads"),
        (lambda p: fo.qk_clip({"*/query": 2.0}), r"powers\['\*/query'\] must be a number in \[0, 1\], got 2.0"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(attention())
