"""functional_opt.experimental: gradients of single examples, made one."""

import copy
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.experimental
import pytest

import functional_opt as fo
from functional_opt import experimental as ex

from ..helpers import assert_close, assert_same_types, make_grads, make_params

PARAMS = make_params()


def run(library, make, steps=4, dtype="float32"):
    """Updates of every step and the last state, from the gradients of six examples a step."""
    tx, grads = make(library, library.experimental.aggregating), make_grads(6 * steps, dtype)
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    step, state, all_updates = jax.jit(lambda g, s: tx.update(g, s, params)), tx.init(params), []
    for i in range(steps):
        updates, new = step(jax.tree.map(lambda g, i=i: g[6 * i : 6 * i + 6], grads), state)
        if library is fo:
            assert_same_types(new, state)
        state = new
        all_updates.append(updates)
    return all_updates, state


def plain(o, agg):
    return agg.process(o.clip(0.5), agg.average_per_element_updates(), o.adam(0.1))


def over_steps(o, agg):
    return agg.process(o.identity(), agg.average_incrementally_updates(0, 2), o.adam(0.1))


def with_variance(o, agg):
    return agg.add_mean_variance_to_opt(o.adam(0.1), 0.9)


def with_variance_over_steps(o, agg):
    return agg.add_mean_variance_to_opt(o.adam(0.1), 0.5, 0, 2)


@pytest.mark.parametrize("make", [plain, over_steps, with_variance, with_variance_over_steps])
def test_optax_parity(make):
    (ours, state), (theirs, their_state) = run(fo, make), run(optax, make)
    assert_close(ours, theirs, rtol=1e-5)
    if "variance" in make.__name__:
        mean, variance = ex.get_unbiased_mean_and_variance_ema(state)
        expected = optax.experimental.aggregating.get_unbiased_mean_and_variance_ema(their_state)
        assert_close((mean, variance), tuple(expected), rtol=1e-5)
    in_16_bit, _ = run(fo, make, dtype="bfloat16")
    assert_close(in_16_bit, ours, rtol=0.01, atol=1e-3)
    assert all(u.dtype == "bfloat16" for u in jax.tree.leaves(in_16_bit))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_variance_is_that_of_all_examples(steps):
    tx = ex.get_per_element_mean_and_sum_sq_diff_grads((0, 2), steps)
    x = np.random.default_rng(0).standard_normal((steps, 4, 5, 2), np.float32) + 7
    state = tx.init(jnp.zeros(5))
    for g in x:
        (mean, more), state = tx.update(g, state)
    examples = x.transpose(2, 0, 1, 3).reshape(5, -1).astype("float64")
    assert_close(mean, examples.mean(1), rtol=1e-6)
    assert_close(more["sum_sq_diff_grads"] / (more["sample_size"] - 1), examples.var(1, ddof=1), rtol=1e-5)


def test_a_leaf_without_gradient_and_one_example():
    tx = ex.add_mean_variance_to_opt(fo.sgd(0.1))
    params = {"a": jnp.ones(2), "b": jnp.ones(3), "ready": jnp.ones([])}
    grads = {"a": jnp.ones((1, 2)), "b": None, "ready": jnp.ones(1)}
    updates, state = tx.update(grads, tx.init(params), params)
    mean, variance = ex.get_unbiased_mean_and_variance_ema(state)
    assert (
        updates["b"] is None and not mean["b"].any() and not jax.tree.reduce(jnp.add, jax.tree.map(jnp.sum, variance))
    )
    assert_close(mean["a"], jnp.ones(2), rtol=1e-6)
    means, _ = ex.get_unbiased_mean_and_variance_ema(tx.init(params))
    assert all(not x.any() for x in jax.tree.leaves(means))


def test_what_is_an_aggregator_and_what_is_not():
    mean, over_time = ex.average_per_element_updates(), ex.accumulate_avg_updates(2)
    own, names = ex.Aggregator(make_params, run), {**globals(), **vars(fo), **vars(ex)}
    for tx in (mean, own, ex.process(fo.identity(), mean, over_time), ex.process(fo.identity(), own, fo.sgd(0.1))):
        assert isinstance(tx, ex.Aggregator) and isinstance(tx, fo.GradientTransformation)
        for twin in (eval(repr(tx), names), copy.deepcopy(tx), pickle.loads(pickle.dumps(tx))):
            assert twin == tx and isinstance(twin, ex.Aggregator)
    none = ex.average_incrementally_updates(None, 2)
    for tx in (over_time, none, ex.process(fo.identity(), over_time, fo.sgd(0.1))):
        assert not isinstance(tx, ex.Aggregator)
    assert not isinstance(fo.GradientTransformation(make_params, run), ex.Aggregator)


@pytest.mark.parametrize("make", [plain, over_steps, with_variance, with_variance_over_steps])
def test_configs_hold_them(make):
    tx = make(fo, ex)
    twin = fo.from_config(json.loads(json.dumps(fo.to_config(tx))))
    assert twin == tx and type(twin) is type(tx)


def test_one_step_keeps_no_state():
    assert jax.tree.leaves(ex.average_incrementally_updates(0, 1).init(PARAMS)) == []


def test_errors():
    tx = ex.get_per_element_mean_and_sum_sq_diff_grads()
    with pytest.raises(ValueError, match=r"updates\['b'\] has gradients of 4 examples, but updates\['a'\] .* 3"):
        tx.update({"a": jnp.ones((3, 2)), "b": jnp.ones(4)}, tx.init(0.0))
    with pytest.raises(ValueError, match=r"updates\['a'\] has shape \(\), which lacks the axis of the examples, 0"):
        tx.update({"a": jnp.ones([])}, tx.init(0.0))
    alone = ex.track_per_element_mean_and_variance_with_ema()
    with pytest.raises(ValueError, match="needs sum_sq_diff_grads: put it into a process"):
        alone.update(1.0, alone.init(1.0))
    with pytest.raises(ValueError, match="no PerElementMeanAndVarianceEMAState"):
        ex.get_unbiased_mean_and_variance_ema(fo.adam(0.1).init(1.0))
    with pytest.raises(ValueError, match=r"accumulation_steps must be in \[1, inf\)"):
        ex.accumulate_avg_updates(0)
