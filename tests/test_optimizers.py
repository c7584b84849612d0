"""What single optimizers promise beyond the table of cases: edges, modes and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functional_opt import (
    adagrad,
    adam,
    adamw,
    amsgrad,
    lion,
    rmsprop,
    scale_by_adam,
    scale_by_amsgrad,
    scale_by_lion,
    scale_by_rms,
    scale_by_rss,
    scale_by_stddev,
    sgd,
)

from .helpers import assert_close, assert_finite, make_grads, make_params, train, train_eagerly, train_jitted

signed = st.integers(-1000, 1000).filter(bool).map(lambda n: n / 10)


def first_update(tx, g):
    return train_eagerly(tx, {"w": jnp.zeros([])}, {"w": jnp.array([g])})[0]["w"]


@given(signed, st.sampled_from([adam, adamw, amsgrad, lion]))
def test_the_first_step_is_the_rate(g, make):
    np.testing.assert_allclose(first_update(make(0.1), g), -0.1 * np.sign(g), rtol=1e-4)


@given(signed)
def test_the_first_step_of_the_others(g):
    np.testing.assert_allclose(first_update(sgd(0.1), g), -0.1 * g, rtol=1e-6)
    np.testing.assert_allclose(first_update(sgd(0.1, 0.9, nesterov=True), g), -0.19 * g, rtol=1e-6)
    np.testing.assert_allclose(first_update(rmsprop(0.1, decay=0.75), g), -0.2 * np.sign(g), rtol=1e-4)
    np.testing.assert_allclose(first_update(adagrad(0.1, 0.0), g), -0.1 * np.sign(g), rtol=1e-4)


def test_adam_eps_hat_is_eps_over_the_correction():
    params, grads = make_params(), make_grads(1)
    hat, _ = train_eagerly(scale_by_adam(b2=0.75, eps=0.1, eps_hat=True), params, grads)
    plain, _ = train_eagerly(scale_by_adam(b2=0.75, eps=0.2), params, grads)
    assert_close(hat, plain, rtol=1e-6)


def test_adam_with_eps_root_is_differentiable_at_zero():
    def step(g, eps_root):
        return first_update(scale_by_adam(eps_root=eps_root), g)

    assert np.isfinite(jax.grad(step)(0.0, 1e-8)) and first_update(adam(0.1), 0.0) == 0.0


def test_adamw_without_decay_is_adam():
    params, grads = make_params(), make_grads(3)
    plain, decayed = (train_jitted(tx, params, grads)[1] for tx in (adam(0.1), adamw(0.1, weight_decay=0.0)))
    assert_close(decayed, plain, rtol=1e-6)


@pytest.mark.parametrize("max_before_correction", [False, True])
def test_amsgrads_second_moment_never_falls(max_before_correction):
    tx = scale_by_amsgrad(b1=0.0, b2=0.5, max_before_correction=max_before_correction)
    grads = np.array([4.0, 1.0, 1.0, 1.0])
    _, updates, state = train(tx, {"w": jnp.zeros([])}, {"w": jnp.asarray(grads, "float32")})
    v, kept, expected = 0.0, 0.0, []
    for t, g in enumerate(grads, 1):
        v, correction = 0.5 * v + 0.5 * g**2, 1 - 0.5**t
        kept = max(kept, v if max_before_correction else v / correction)
        expected.append(g / np.sqrt(kept / correction if max_before_correction else kept))
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-6)
    np.testing.assert_allclose(state.nu_max["w"], kept, rtol=1e-6)


@pytest.mark.parametrize("bias_correction", [False, True])
def test_centered_rmsprop_of_a_gradient_that_stays(bias_correction):
    """Its variance goes to zero, and in float32 below: v − m² must not become a NaN."""
    g = jnp.asarray(3 * np.random.default_rng(0).standard_normal(1000), "float32")
    tx, grads = scale_by_stddev(bias_correction=bias_correction), jnp.broadcast_to(g, (250, 1000))
    _, updates, state = train_jitted(tx, jnp.zeros(1000), grads, 0.0)
    assert_finite((updates, state))


def test_rmsprop_without_a_count_keeps_none():
    assert scale_by_rms().init({"w": 0.0})._fields == ("nu",)
    assert int(scale_by_rms(bias_correction=True).init({"w": 0.0}).count) == 0


def test_adagrad_with_nothing_seen_stands_still():
    for eps_in_sqrt in (True, False):
        tx = scale_by_rss(initial_accumulator_value=0.0, eps=0.0, eps_in_sqrt=eps_in_sqrt)
        assert first_update(tx, 0.0) == 0.0 and abs(first_update(tx, 1e-3) - 1.0) < 1e-5


@given(signed)
def test_lions_modes(g):
    c = 0.1 * g
    assert float(first_update(scale_by_lion(), g)) == np.sign(c)
    smooth = first_update(scale_by_lion(mode="smooth", smooth_beta=2.0), g)
    np.testing.assert_allclose(smooth, np.tanh(2 * c), rtol=1e-4)
    np.testing.assert_allclose(first_update(scale_by_lion(mode="refined"), g), np.clip(c, -1, 1), rtol=1e-5)


@pytest.mark.parametrize(
    "make, slots",
    [
        (lambda **k: adam(0.1, **k), ("mu", "nu")),
        (lambda **k: adamw(0.1, **k), ("mu", "nu")),
        (lambda **k: amsgrad(0.1, **k), ("mu", "nu", "nu_max")),
        (lambda **k: rmsprop(0.1, **k), ("nu",)),
        (lambda **k: rmsprop(0.1, centered=True, **k), ("mu", "nu")),
        (lambda **k: adagrad(0.1, **k), ("sum_of_squares",)),
        (lambda **k: lion(0.1, **k), ("mu",)),
        (lambda **k: sgd(0.1, 0.9, **k), ("trace",)),
    ],
)
def test_state_dtype(make, slots):
    for asked, stored in [(None, "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")]:
        state = make(state_dtype=asked).init({"w": jnp.ones(2, "bfloat16")})[0]
        assert [getattr(state, slot)["w"].dtype for slot in slots] == [stored] * len(slots)


def test_mu_dtype_is_of_the_mean_alone():
    state = adam(0.1, mu_dtype="bfloat16", state_dtype="float16").init({"w": jnp.ones(2)})[0]
    assert (state.mu["w"].dtype, state.nu["w"].dtype) == (jnp.bfloat16, jnp.float16)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: adam(0.1, b1=-0.1), r"b1 must be in \[0, 1\), got -0.1"),
        (lambda: adam(0.1, b2=1.0), r"b2 must be in \[0, 1\), got 1.0"),
        (lambda: adamw(0.1, eps=-1e-8), "eps must be in .*, got -1e-08"),
        (lambda: rmsprop(0.1, decay=1.5), r"decay must be in \[0, 1\), got 1.5"),
        (lambda: rmsprop(0.1, initial_scale=-1.0), "initial_scale must be in .*, got -1.0"),
        (lambda: adagrad(0.1, -0.1), "initial_accumulator_value must be in .*, got -0.1"),
        (lambda: sgd(0.1, 0.9, nesterov="yes"), "nesterov must be False or True, got 'yes'"),
        (lambda: scale_by_lion(mode="soft"), "mode must be 'hard' or 'smooth' or 'refined', got 'soft'"),
        (lambda: scale_by_lion(smooth_beta=0.0), r"smooth_beta must be in \(0, inf\), got 0.0"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
