"""Adafactor beyond the table of cases: which leaves have factors, along which axes, and its relative step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

PARAMS = {"wide": jnp.ones((2, 3, 130)), "large": jnp.ones((128, 256)), "bias": jnp.ones(256)}


def shapes(state):
    return {
        name: [jax.tree.map(jnp.shape, tree)[name] for tree in (state.v_row, state.v_col, state.v)] for name in PARAMS
    }


def test_only_long_axes_have_factors():
    assert shapes(fo.scale_by_factored_rms().init(PARAMS)) == {
        "wide": [(1,), (1,), (2, 3, 130)],
        "large": [(128,), (256,), (1,)],
        "bias": [(1,), (1,), (256,)],
    }


def test_the_last_axes_are_not_the_largest():
    g = jnp.asarray(np.random.default_rng(0).standard_normal((4, 2, 3)), "float32")
    tx = fo.scale_by_factored_rms(min_dim_size_to_factor=1, factored_axes="last")
    u, state = tx.update(g, tx.init(g))
    r, c = np.mean(g**2, axis=-1, keepdims=True), np.mean(g**2, axis=-2, keepdims=True)
    np.testing.assert_allclose(u, g / np.sqrt(r * c / np.mean(r, axis=-2, keepdims=True)), rtol=1e-5)
    assert (state.v_row.shape, state.v_col.shape) == ((4, 2), (4, 3))
    assert fo.scale_by_factored_rms(min_dim_size_to_factor=1).init(g).v_row.shape == (2, 3)


def test_rows_behind_the_columns():
    """The longest axis is the first one here, the second longest the middle one."""
    g = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3, 2)), "float32")
    tx = fo.scale_by_factored_rms(min_dim_size_to_factor=1)
    u, state = tx.update(g, tx.init(g))
    r, c = np.mean(g**2, axis=0, keepdims=True), np.mean(g**2, axis=1, keepdims=True)
    np.testing.assert_allclose(u, g / np.sqrt(r * c / np.mean(r, axis=1, keepdims=True)), rtol=1e-5)
    assert (state.v_row.shape, state.v_col.shape) == ((3, 2), (5, 2))


def test_a_matrix_of_one_zero_row_and_column_stays_finite():
    g = jnp.ones((3, 3)).at[0].set(0.0).at[:, 0].set(0.0)
    tx = fo.scale_by_factored_rms(min_dim_size_to_factor=1)
    u, _ = tx.update(g, tx.init(g))
    assert np.all(np.isfinite(u)) and u[0, 0] == 0


def test_a_gradient_of_another_shape_is_named():
    tx = fo.scale_by_factored_rms()
    with pytest.raises(ValueError, match=r"updates\['bias'\] has shape \(3,\), but params has \(256,\)"):
        tx.update(PARAMS | {"bias": jnp.ones(3)}, tx.init(PARAMS), PARAMS)


def test_relative_step_is_the_smaller_of_two():
    step = fo.relative_step(fo.linear_schedule(1.0, 0.0, 10))
    np.testing.assert_allclose(
        [step(t) for t in range(11)], [min(1 - t / 10, (t + 1) ** -0.5) for t in range(11)], 1e-6
    )


def test_steps_that_do_not_count():
    """t is 1 until they are over: V is the last |g|², then the mean of a fresh start."""
    tx, fresh = fo.scale_by_factored_rms(step_offset=3), fo.scale_by_factored_rms()
    state, w = tx.init(jnp.ones(2)), jnp.ones(2)
    for g in (jnp.array([1.0, 10.0]), jnp.array([10.0, 1.0]), jnp.array([0.1, -2.0])):
        updates, state = tx.update(g, state, w)
        np.testing.assert_allclose(updates, jnp.sign(g), rtol=1e-5)
    start = fresh.init(w)
    for g in (jnp.array([1.0, 2.0]), jnp.array([3.0, 1.0])):
        (updates, state), (expected, start) = tx.update(g, state, w), fresh.update(g, start, w)
        np.testing.assert_allclose(updates, expected, rtol=1e-5)
