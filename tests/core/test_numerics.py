"""Norms with a floor, their derivatives at it, and counts that stay at the end of their range."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from functional_opt import safe_increment, safe_norm, safe_root_mean_squares
from functional_opt.core import transformation as base

X = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)


@pytest.mark.parametrize(
    "options",
    [{}, {"axis": 1}, {"axis": 0, "keepdims": True}, {"ord": 1}, {"ord": np.inf, "axis": 1}, {"axis": (0, 1)}],
    ids=repr,
)
@pytest.mark.parametrize("least", [0.5, 4.5])
def test_safe_norm_is_that_of_optax(options, least):
    def run(norm):
        return jax.value_and_grad(lambda x: jnp.sum(norm(x, least, **options)))(X)

    for x, y in zip(run(safe_norm), run(optax.safe_norm), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_derivatives_at_zero():
    assert jax.grad(safe_norm)(jnp.zeros(2), 0.0).tolist() == [0.0, 0.0]
    assert jax.grad(safe_root_mean_squares)(jnp.zeros(2), 0.0).tolist() == [0.0, 0.0]
    assert jax.grad(safe_root_mean_squares)(jnp.array([0.3, 0.0]), 1.0).tolist() == [0.0, 0.0]


def test_sums_in_float32():
    """4096 bfloat16 ones: a sum in bfloat16 stays at 256."""
    ones = jnp.ones(4096, "bfloat16")
    assert safe_norm(ones, 0.0).dtype == jnp.bfloat16 and float(safe_norm(ones, 0.0)) == 64.0
    assert float(safe_root_mean_squares(ones, 0.0)) == 1.0
    assert float(safe_norm(jnp.array([3 + 4j]), 0.0)) == 5.0


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint8", "uint32", "float16"])
def test_counts_stay_at_the_end(dtype):
    last = np.array(jnp.finfo(dtype).max if dtype == "float16" else jnp.iinfo(dtype).max, dtype)
    assert safe_increment(last) == last and safe_increment(last).dtype == dtype
    assert safe_increment(np.zeros((), dtype)) == 1
    assert safe_increment(np.array(last - 1, dtype)) == last or dtype == "float16"
    with pytest.raises(TypeError, match="count must be an integer or a float, got bool"):
        safe_increment(True)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "uint32"])
def test_counts_of_64_bits_stay_at_the_end(dtype):
    with jax.enable_x64(True):
        last = jnp.array(jnp.iinfo(dtype).max, dtype)
        for increment in (safe_increment, base.increment):
            assert increment(last) == last and increment(last).dtype == dtype
            assert increment(last - 1) == last
