"""Where Optax 0.2.8 fails, one test each; every failure was seen on JAX 0.10.2."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from functional_opt import adam, apply_updates, chain, clip_by_global_norm, global_norm, lion, scale_by_adam
from functional_opt.schedules import constant_schedule, join_schedules, linear_schedule

from .helpers import assert_close, assert_finite, at, make_grads, make_params, train, train_jitted, without_bias


def test_1_hyperparameters_as_arguments_on_bfloat16_params():
    """`inject_hyperparams` stores b2 = 0.999 in bfloat16 as 1.0, and the first update is NaN."""
    params, grads = make_params("bfloat16"), make_grads(3, "bfloat16")
    _, updates, _ = train_jitted(adam(0.1), params, grads)
    _, expected, _ = train(adam(0.1), params, grads)
    assert_close(updates, expected, rtol=0.01)


def test_2_second_moment_of_bfloat16_params_does_not_stall():
    """At 3000 steps of gradient 1 it is 1 − 0.999³⁰⁰⁰ = 0.950; in bfloat16 it stalls at 0.5."""
    grads = {"w": jnp.ones((3000,), "bfloat16")}
    _, _, state = train_jitted(scale_by_adam(), {"w": jnp.zeros([], "bfloat16")}, grads, 0.0)
    np.testing.assert_allclose(state.nu["w"], 1 - 0.999**3000, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_3_norms_of_16_bit_leaves(dtype):
    """300 leaves of 4096 ones have the norm 1108.5; summed in bfloat16 1024, in float16 infinity."""
    tree = {str(i): jnp.ones(4096, dtype) for i in range(300)}
    np.testing.assert_allclose(jax.jit(global_norm)(tree), np.sqrt(300 * 4096), rtol=1e-6)
    clipped, _ = jax.jit(clip_by_global_norm(1.0).update)(tree, ())
    np.testing.assert_allclose(np.asarray(clipped["0"], np.float32), 1 / np.sqrt(300 * 4096), rtol=4e-3)


def test_4_zero_and_nan_norms():
    zero = {"a": jnp.zeros(3), "b": jnp.zeros([])}
    assert_close(jax.grad(global_norm)(zero), zero)
    assert_close(clip_by_global_norm(0.0).update(zero, ())[0], zero)
    assert_close(clip_by_global_norm(0.0).update({"a": jnp.ones(3)}, ())[0], {"a": jnp.zeros(3)})
    clipped, _ = clip_by_global_norm(1.0).update({"bad": jnp.array(np.nan), "good": jnp.array([3.0, 4.0])}, ())
    assert jnp.isnan(clipped["bad"])
    assert_close(clipped["good"], jnp.array([0.6, 0.8]), rtol=1e-6)


def test_5_adam_scans_over_bfloat16_params_with_float32_gradients():
    params, updates, state = train_jitted(adam(0.1), make_params("bfloat16"), make_grads(5))
    assert (
        params["scale"].dtype == updates["scale"].dtype == jnp.bfloat16 and state[0].mu["scale"].dtype == jnp.float32
    )
    assert_finite((params, updates, state))


def test_6_float16_adam_of_a_zero_gradient():
    params, grads = make_params("float16"), jax.tree.map(jnp.zeros_like, make_grads(3, "float16"))
    new, updates, _ = train_jitted(adam(0.1), params, grads)
    assert_close(updates, jax.tree.map(jnp.zeros_like, updates))
    assert_close(at(new, 2), params)


@pytest.mark.parametrize("make", [adam, lion])
def test_7_none_gradients_over_real_params(make):
    params = make_params()
    tx, grads = make(0.1), without_bias(at(make_grads(1), 0))
    new = apply_updates(params, tx.update(grads, tx.init(params), params)[0])
    assert_close(new["dense"]["bias"], params["dense"]["bias"])
    assert not np.any(np.asarray(new["dense"]["kernel"]) == np.asarray(params["dense"]["kernel"]))


def test_9_mistakes_are_refused_and_transformations_print():
    assert chain().update({"w": 1.0}, chain().init({"w": 0.0}))[0] == {"w": 1.0}
    with pytest.raises(ValueError, match="learning_rate must be in .*, got -1"):
        adam(-1)
    with pytest.raises(ValueError, match=r"b2 must be in \[0, 1\), got 1.5"):
        adam(0.1, b2=1.5)
    with pytest.raises(ValueError, match="transition_steps must be in .*, got 0"):
        linear_schedule(1.0, 0.0, transition_steps=0)
    with pytest.raises(ValueError, match="2 schedules need 1 boundaries, got"):
        join_schedules([constant_schedule(1.0), constant_schedule(2.0)], [])
    tx = chain(clip_by_global_norm(1.0), adam(0.1, b1=0.8))
    assert repr(tx) == ("chain(clip_by_global_norm(1.0), chain(scale_by_adam(b1=0.8), scale_by_learning_rate(0.1)))")


def operations(jaxpr):
    """`(primitive, shape of its result)` for every equation, also of inner functions."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name, eqn.outvars[0].aval.shape
        for sub in jaxprs_in_params(eqn.params):
            yield from operations(sub)


def test_10_clipping_neither_divides_nor_selects_leaf_by_leaf():
    """So that XLA fuses the factor into what follows, and writes no clipped copy of the gradients."""
    grads = {"a": jnp.ones((4, 2)), "b": jnp.ones(7)}
    jaxpr = jax.make_jaxpr(functools.partial(clip_by_global_norm(1.0).update, state=()))(grads).jaxpr
    on_leaves = {name for name, shape in operations(jaxpr) if shape in ((4, 2), (7,))}
    assert "mul" in on_leaves and not on_leaves & {"div", "select_n", "cond", "sqrt", "min", "max"}
