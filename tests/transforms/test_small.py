"""The small transformations of one gradient: lengths, means, NaN, windows, parts of complex leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import (
    apply_every,
    apply_updates,
    centralize,
    clip,
    global_norm,
    keep_params_nonnegative,
    normalize,
    normalize_by_update_norm,
    scale_gradient,
    split_real_and_imaginary,
    unitwise_clip,
    unitwise_norm,
    zero_nans,
)

from ..helpers import assert_close, at, make_grads


def run(tx, updates, params=None):
    return tx.update(updates, tx.init(updates if params is None else params), params)[0]


def test_lengths():
    grads = at(make_grads(1), 0)
    np.testing.assert_allclose(global_norm(run(normalize(), grads)), 1.0, rtol=1e-6)
    np.testing.assert_allclose(global_norm(run(normalize_by_update_norm(-3.0, 0.0), grads)), 3.0, rtol=1e-6)
    zeros = {"w": jnp.zeros(3)}
    assert_close(run(normalize(), zeros), zeros)
    assert_close(run(normalize_by_update_norm(eps=0.0), zeros), zeros)


def test_units_have_mean_zero():
    u = run(centralize(), jnp.arange(24.0).reshape(2, 3, 4) ** 2)
    np.testing.assert_allclose(u.mean((1, 2)), 0.0, atol=1e-4)
    assert float(jnp.abs(u).max()) > 1.0 and run(centralize(), jnp.arange(3.0)).tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_no_param_goes_below_zero(dtype):
    """Rounding the update to 16 bits does not take it past −w."""
    rng = np.random.default_rng(0)
    w, g = jnp.asarray(rng.uniform(0, 2, 500), dtype), jnp.asarray(rng.normal(0, 2, 500), "float32")
    new = apply_updates(w, run(keep_params_nonnegative(), g, w))
    assert new.min() == 0.0 and new.dtype == dtype
    assert_close(new, jnp.maximum(w.astype("float32") + g, 0), rtol=0.01, atol=0.02)


def test_a_nan_is_seen_and_forgotten():
    tx = zero_nans()
    state = tx.init({"a": jnp.zeros(2), "b": jnp.zeros(1)})
    updates, state = tx.update({"a": jnp.array([np.nan, np.inf]), "b": jnp.ones(1)}, state)
    assert updates["a"].tolist() == [0.0, np.inf] and [bool(x) for x in state.found_nan.values()] == [True, False]
    _, state = tx.update({"a": jnp.zeros(2), "b": jnp.ones(1)}, state)
    assert not state.found_nan["a"]


def test_a_window_with_a_nan_does_not_spoil_the_next():
    tx = apply_every(2)
    state = tx.init(0.0)
    for g in (np.nan, 1.0, 2.0, 3.0):
        u, state = tx.update(g, state)
    assert u == 5.0


def test_parts_of_complex_leaves_are_apart():
    """A clip of each part, where `clip` alone bounds the modulus; real leaves and None as ever."""
    params = {"z": jnp.zeros(1, complex), "x": jnp.zeros(1), "n": jnp.zeros(1, complex)}
    grads = {"z": jnp.array([3 - 0.5j]), "x": jnp.array([2.0]), "n": None}
    u = run(split_real_and_imaginary(clip(1.0)), grads, params)
    assert u["z"].tolist() == [1 - 0.5j] and u["x"].tolist() == [1.0] and u["n"] is None


def test_unitwise_clip():
    g = jnp.array([[3.0, 0.1], [4.0, 0.0]])
    u = unitwise_clip(unitwise_norm(g), jnp.array([[1.0, 1.0]]), g)
    np.testing.assert_allclose(u, [[0.6, 0.1], [0.8, 0.0]], rtol=1e-6)
    assert unitwise_clip(jnp.zeros(1), 0.0, jnp.zeros(1)).tolist() == [0.0]


def test_scaled_gradients():
    def loss(w):
        w = scale_gradient(w, jnp.float32(0.5))
        return w["a"] ** 2 + w["b"].astype("float32") * w["n"]

    w = {"a": jnp.float32(3.0), "b": jnp.ones([], "bfloat16"), "n": jnp.int32(4)}
    slopes = jax.grad(loss, allow_int=True)(w)
    assert slopes["a"] == 3.0 and slopes["b"] == 2.0 and slopes["b"].dtype == jnp.bfloat16
    assert jax.jvp(lambda x: scale_gradient(x, 3.0) ** 2, (2.0,), (1.0,)) == (4.0, 12.0)
