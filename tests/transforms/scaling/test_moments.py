"""trace and ema: the sums and means themselves, and how they are stored."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functional_opt import ema, sgd, trace

from ...helpers import train_jitted

numbers = st.integers(-1000, 1000).map(lambda n: n / 100)
gradients = st.lists(numbers, min_size=6, max_size=6)
decays = st.sampled_from([0.0, 0.5, 0.9, 0.999])


def run(tx, grads):
    _, updates, state = train_jitted(tx, {"w": jnp.zeros([])}, {"w": jnp.asarray(grads, "float32")})
    return np.asarray(updates["w"]), state


@given(gradients, st.sampled_from([0.0, 0.5, 1.0]))
def test_trace_is_a_decayed_sum(grads, decay):
    sums = [sum(decay ** (t - i) * g for i, g in enumerate(grads[: t + 1])) for t in range(len(grads))]
    updates, state = run(trace(decay), grads)
    np.testing.assert_allclose(updates, sums, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state.trace["w"], sums[-1], rtol=1e-5, atol=1e-5)
    ahead, _ = run(trace(decay, nesterov=True), grads)
    np.testing.assert_allclose(ahead, np.add(grads, decay * np.array(sums)), rtol=1e-5, atol=1e-5)


@given(gradients, decays)
def test_ema_is_a_weighted_mean(grads, decay):
    def mean(t):
        weights = [decay ** (t - i) for i in range(t + 1)]
        return np.average(grads[: t + 1], weights=weights)

    updates, state = run(ema(decay), grads)
    np.testing.assert_allclose(updates, [mean(t) for t in range(len(grads))], rtol=1e-3, atol=1e-3)
    biased, _ = run(ema(decay, debias=False), grads)
    np.testing.assert_allclose(biased[-1], mean(5) * (1 - decay**6), rtol=1e-4, atol=1e-5)
    assert int(state.count) == 6


@given(numbers, decays)
def test_ema_of_a_constant_is_that_constant(x, decay):
    np.testing.assert_allclose(run(ema(decay), [x] * 6)[0], x, rtol=1e-4)


@pytest.mark.parametrize("make", [trace, ema])
def test_storage(make):
    params = {"w": jnp.ones(2, "bfloat16"), "z": jnp.ones(2, "complex64")}
    for asked, stored in [(None, "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")]:
        slots = make(0.9, accumulator_dtype=asked).init(params)[-1]
        assert slots["w"].dtype == stored and slots["z"].dtype == jnp.complex64


def test_momentum_of_one_and_of_none():
    assert run(sgd(1.0, momentum=1.0), [1.0, 1.0, 1.0])[0].tolist() == [-1.0, -2.0, -3.0]
    assert run(sgd(1.0, momentum=0.0), [1.0, 1.0, 1.0])[0].tolist() == [-1.0, -1.0, -1.0]
    assert sgd(1.0).init({"w": 0.0}) == ((), ())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: trace(1.1), r"decay must be in \[0, 1\], got 1.1"),
        (lambda: ema(1.0), r"decay must be in \[0, 1\), got 1.0"),
        (lambda: sgd(0.1, momentum=-0.5), r"momentum must be in \[0, 1\], got -0.5"),
    ],
)
def test_decays_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
