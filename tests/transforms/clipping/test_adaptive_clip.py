"""zclip, adagc, clip_by_quantile: clips that remember, against their papers, and what is not to be remembered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ...conformance import references_guard as ref
from ...helpers import assert_close, at, make_grads, make_params, train_compiled

CLIPS = [
    (fo.zclip, ref.zclip, {"decay": 0.9, "z_threshold": 1.5, "warmup_steps": 5}),
    (fo.adagc, ref.adagc, {"relative": 1.05, "absolute": 3.0, "decay": 0.9, "warmup_steps": 5}),
    (fo.clip_by_quantile, ref.clip_by_quantile, {"quantile": 0.7, "window": 8}),
]
SHORT = [fo.zclip(warmup_steps=3), fo.adagc(warmup_steps=3), fo.clip_by_quantile(0.5, window=4)]


def with_spikes():
    """Gradients of 50 steps, some of them far larger."""
    sizes = np.where(np.arange(50) % 9 == 7, 20.0, 1.0)
    return jax.tree.map(lambda g: g * sizes.reshape(-1, *[1] * (g.ndim - 1)).astype("float32"), make_grads(50))


@pytest.mark.parametrize("make, reference, args", CLIPS, ids=lambda x: getattr(x, "__name__", ""))
def test_as_in_the_paper(make, reference, args):
    grads = with_spikes()
    _, updates, _ = train_compiled(make(**args), make_params(), grads, 0.01)
    steps = [[np.asarray(x, np.float64) for x in jax.tree.leaves(at(grads, i))] for i in range(50)]
    expected = [np.stack(x) for x in zip(*reference(steps, **args), strict=True)]
    assert_close(jax.tree.leaves(updates), expected, rtol=1e-5, atol=1e-7)
    unclipped = sum(np.allclose(at(updates, i)["scale"], at(grads, i)["scale"]) for i in range(50))
    assert 5 < unclipped < 45


@pytest.mark.parametrize("tx", SHORT, ids=repr)
def test_what_is_not_finite_is_not_remembered(tx):
    """An infinity leaves zeros in the other elements, a NaN stays in its leaf; neither is seen in the next steps."""
    state = clean = tx.init({"a": jnp.zeros(2), "b": 0.0})
    for size in (1.0, 2.0, 3.0, 2.0):
        good = {"a": jnp.array([size, 0.0]), "b": size}
        _, state = tx.update(good, state)
        _, clean = tx.update(good, clean)
        u, state = tx.update({"a": jnp.array([jnp.inf, 1.0]), "b": 1.0}, state)
        if not isinstance(tx, fo.adagc):
            assert u["a"][1] == u["b"] == 0
            assert_close(jax.tree.leaves(state), jax.tree.leaves(clean), rtol=1e-6)
    u, after = tx.update({"a": jnp.array([jnp.nan, 1.0]), "b": 1.0}, state)
    assert jnp.isfinite(u["b"]) and all(jnp.isfinite(x).all() for x in jax.tree.leaves((state, after)))


def test_a_leaf_that_had_no_gradient_in_the_warm_up_moves():
    tx, state = fo.adagc(warmup_steps=1), fo.adagc().init({"a": 0.0, "b": 0.0})
    _, state = tx.update({"a": 1.0, "b": 0.0}, state)
    u, state = tx.update({"a": 1.0, "b": 4.0}, state)
    assert u["b"] == 4 and tx.update({"a": 1.0, "b": 40.0}, state)[0]["b"] == pytest.approx(4 * 1.05)


def test_norms_that_do_not_differ_are_not_clipped():
    """Zeros in the warm-up leave no deviation to measure by."""
    tx = fo.zclip(warmup_steps=2)
    state = tx.init(0.0)
    for g in (0.0, 0.0, 5.0):
        u, state = tx.update(g, state)
    assert u == 5


def test_metrics_know_the_clips():
    tx = fo.with_metrics(fo.chain(fo.clip_by_quantile(0.0), fo.adagc(), fo.zclip(), fo.sgd(0.1)))
    found = fo.metrics(tx.update(at(make_grads(1), 0), tx.init(make_params()), make_params())[1])
    assert {"clipped_norm/0", "clipped_norm/1", "clipped_norm/2"} <= found.keys()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: fo.zclip(warmup_steps=1), r"warmup_steps must be in \[2, inf\), got 1"),
        (lambda: fo.clip_by_quantile(1.5), r"quantile must be in \[0, 1\], got 1.5"),
        (lambda: fo.clip_by_quantile(window=0), r"window must be in \[1, inf\), got 0"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
