"""Odd leaves for the optimizers that keep a matrix for each axis."""

import jax
import jax.numpy as jnp
import pytest

import functional_opt as fo

from ...helpers import assert_finite, assert_same_types, train


@pytest.mark.parametrize("make", [fo.soap, fo.kl_soap, fo.kl_shampoo, fo.shampoo, fo.psgd_kron])
def test_short_axes_and_wider_gradients(make):
    """Axes of no or one element, and float64 gradients of float32 params."""
    with jax.enable_x64(True):
        shapes = [(0, 3), (0,), (1, 1), (1,), (2, 1, 2)]
        params = [jnp.ones(shape, "float32") for shape in shapes]
        grads = [jnp.linspace(1.0, 2.0, 3).reshape(-1, *[1] * len(shape)) * jnp.ones(shape) for shape in shapes]
        tx = make(0.1)
        _, updates, state = jax.jit(train)(tx, params, grads)
        assert_finite((updates, state))
        assert_same_types(state, tx.init(params))
        assert [u.dtype for u in updates] == [jnp.float32] * len(shapes)
