"""Params that follow others: a running mean, or a copy now and then."""

import jax
import jax.numpy as jnp
import optax
import pytest

from functional_opt import incremental_update, periodic_update

from ..helpers import assert_close, assert_same_types, make_params, without_bias

NEW, OLD = jax.tree.map(lambda x: x + 1, make_params()), make_params()


def test_incremental_update_is_that_of_optax():
    assert_close(incremental_update(NEW, OLD, 0.25), optax.incremental_update(NEW, OLD, 0.25), rtol=1e-6)
    assert_close(incremental_update(NEW, OLD, 1.0), NEW)


@pytest.mark.parametrize("step", range(4))
def test_periodic_update_is_that_of_optax(step):
    expected = optax.periodic_update(NEW, OLD, jnp.int32(step), 3)
    assert_close(jax.jit(periodic_update)(NEW, OLD, step, 3), expected)
    assert_close(expected, NEW if step % 3 == 0 else OLD)


def test_leaves_that_are_nothing_stay():
    for new in (incremental_update(without_bias(NEW), OLD, 0.5), periodic_update(without_bias(NEW), OLD, 0, 2)):
        assert_close(new["dense"]["bias"], OLD["dense"]["bias"])
        assert_same_types(new, OLD)


def test_16_bit_is_rounded_once():
    """0.01 of the way in bfloat16: 1 + 0.01 · 2 = 1.02, which lies between 1.015625 and 1.0234375."""
    new = incremental_update(jnp.full(1, 3.0), jnp.ones(1, "bfloat16"), 0.01)
    assert new.dtype == jnp.bfloat16 and float(new[0]) == 1.0234375


def test_trees_that_differ():
    with pytest.raises(ValueError, match=r"new_tensors\['w'\] has shape \(2,\), but old_tensors has \(3,\) there"):
        incremental_update({"w": jnp.ones(2)}, {"w": jnp.ones(3)}, 0.5)


@pytest.mark.parametrize("step_size", [-0.1, 1.5, float("nan")])
def test_steps_out_of_range(step_size):
    with pytest.raises(ValueError, match=r"step_size must be in \[0, 1\], got"):
        incremental_update(NEW, OLD, step_size)
    with pytest.raises(ValueError, match="update_period must be a whole number of at least 1, got"):
        periodic_update(NEW, OLD, 3, step_size)
