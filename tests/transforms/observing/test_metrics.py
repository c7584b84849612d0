"""with_metrics: the scalars of a step, through jit, scan and nesting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ...helpers import assert_close, at, make_grads, make_params, without_bias

PARAMS, GRADS = make_params(), make_grads(6)
SCHEDULE = fo.linear_schedule(1.0, 0.0, 10)


def run(tx, grads=GRADS, params=PARAMS):
    """The metrics of every step of a jitted scan, stacked."""

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (fo.apply_updates(params, updates), state), (fo.metrics(state), updates, params)

    return jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), grads)[1])()


def norms(tree):
    """The global norm at every step of a stacked tree."""
    return np.sqrt(sum(np.square(np.asarray(x)).reshape(len(x), -1).sum(1) for x in jax.tree.leaves(tree)))


def test_norms_and_rates_of_a_chain():
    got, updates, params = run(fo.with_metrics(fo.chain(fo.clip_by_global_norm(2.0), fo.sgd(SCHEDULE))))
    gradient = norms(GRADS)
    assert (gradient > 2).any() and (gradient < 4).any()
    expected = {
        "step": np.arange(1, 7),
        "skipped": np.zeros(6),
        "learning_rate": 1 - np.arange(6) / 10,
        "gradient_norm": gradient,
        "clipped_norm": np.minimum(gradient, 2),
        "update_norm": norms(updates),
        "update_ratio": norms(updates) / norms(params),
    }
    assert_close(got, expected, rtol=1e-5)
    assert got["step"].dtype == got["skipped"].dtype == jnp.int32


def test_updates_and_inner_numbers_are_those_without():
    tx = fo.chain(fo.clip(0.5), fo.adamw(SCHEDULE))
    _, updates, _ = run(fo.with_metrics(tx))
    state, params = tx.init(PARAMS), PARAMS
    for i in range(6):
        expected, state = tx.update(at(GRADS, i), state, params)
        assert_close(at(updates, i), expected, rtol=1e-4, atol=1e-6)
        params = fo.apply_updates(params, expected)


def test_nothing_is_computed_unless_wrapped():
    tx = fo.chain(fo.clip(0.5), fo.adam(0.1))
    state = jax.eval_shape(tx.init, PARAMS)
    assert [x.shape for x in jax.tree.leaves(state)].count(()) == 1 + 2 * len([PARAMS["scale"]])
    with pytest.raises(ValueError, match="one MetricsState in it, got 0: wrap the transformation in with_metrics"):
        fo.metrics(state)


def test_a_chain_in_multi_steps_in_a_partition():
    inner = fo.MultiSteps(fo.chain(fo.clip_by_global_norm(0.5), fo.sgd(SCHEDULE)), 2)
    tx = fo.partition({"in": inner, "out": fo.adam(0.25)}, {"dense/**": "in", "**": "out"})
    got, _, _ = run(fo.with_metrics(tx))
    assert_close(got["learning_rate/in"], np.array([1.0, 1.0, 0.9, 0.9, 0.8, 0.8]), rtol=1e-6)
    assert_close(got["learning_rate/out"], np.full(6, 0.25), rtol=1e-6)
    assert_close(got["clipped_norm"], np.array([0.0, 0.5, 0.5, 0.5, 0.5, 0.5]), rtol=1e-5)


def test_several_links_of_a_kind():
    tx = fo.named_chain(("a", fo.clip(0.5)), ("b", fo.chain(fo.clip(0.1), fo.sgd(0.5))), ("c", fo.sgd(2.0)))
    assert {k for k in run(fo.with_metrics(tx))[0] if "/" in k} == {
        "clipped_norm/a",
        "clipped_norm/b",
        "learning_rate/b",
        "learning_rate/c",
    }
    got, _, _ = run(fo.with_metrics(fo.chain(fo.clip(0.5), fo.clip(0.1), fo.sgd(0.5))))
    assert {"clipped_norm/0", "clipped_norm/1", "learning_rate"} <= got.keys()
    assert (got["clipped_norm/1"] < got["clipped_norm/0"]).all()


@pytest.mark.parametrize(
    "tx, rates",
    [
        (fo.scale(-0.1), None),
        (fo.scale_by_learning_rate(None), np.ones(6)),
        (fo.ftrl(fo.linear_schedule(2.0, 1.0, 10)), 2 - np.arange(6) / 10),
        (fo.schedule_free_sgd(0.5), np.full(6, 0.5)),
        (fo.schedule_free_sgd(1.0, warmup_steps=10), np.arange(6) / 10),
        (fo.groups(fo.sgd(0.5), {"scale": "frozen"}), np.full(6, 0.5)),
        (fo.masked(fo.apply_if_finite(fo.adam(SCHEDULE), 3), fo.PathRules({"scale": False})), 1 - np.arange(6) / 10),
    ],
    ids=repr,
)
def test_learning_rates(tx, rates):
    got, _, _ = run(fo.with_metrics(tx))
    if rates is None:
        assert "learning_rate" not in got
    else:
        assert_close(got["learning_rate"], rates, rtol=1e-5, atol=1e-7)


def with_nans(*steps):
    bad = jnp.zeros(6).at[jnp.array(steps)].set(jnp.nan)
    return {**GRADS, "scale": GRADS["scale"] + bad}


def test_skipped_steps():
    got, _, _ = run(fo.with_metrics(fo.apply_if_finite(fo.sgd(SCHEDULE), 1)), with_nans(1, 3, 4))
    assert got["skipped"].tolist() == [0, 1, 1, 2, 2, 2]  # the second in a row is let through
    assert_close(got["learning_rate"][:5], 1 - np.array([0, 1, 1, 2, 2]) / 10, rtol=1e-6)
    skipping = fo.MultiSteps(fo.sgd(0.1), 2, should_skip_update_fn=fo.skip_not_finite)
    got, _, _ = run(fo.with_metrics(skipping), with_nans(1, 2))
    assert got["skipped"].tolist() == [0, 1, 2, 2, 2, 2]
    within = fo.MultiSteps(fo.apply_if_finite(fo.sgd(0.1), 9), 2)
    got, _, _ = run(fo.with_metrics(within), with_nans(0))
    assert got["skipped"].tolist() == [0, 1, 1, 1, 1, 1]


def test_each_mini_step_of_one_is_no_skip():
    got, _, _ = run(fo.with_metrics(fo.MultiSteps(fo.sgd(0.1), 1)))
    assert got["skipped"].tolist() == [0] * 6


def test_params_that_are_zero_or_not_there():
    tx = fo.with_metrics(fo.sgd(0.1))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    assert fo.metrics(tx.update(at(GRADS, 0), tx.init(zeros), zeros)[1])["update_ratio"] == 0
    assert jnp.isnan(fo.metrics(tx.update(at(GRADS, 0), tx.init(zeros))[1])["update_ratio"])
    got = fo.metrics(tx.update(without_bias(at(GRADS, 0)), tx.init(PARAMS), PARAMS)[1])
    assert got["gradient_norm"] < norms(GRADS)[0]


def test_metrics_inside_of_others():
    tx = fo.MultiSteps(fo.chain(fo.clip(1.0), fo.with_metrics(fo.sgd(0.1))), 2)
    got, _, _ = run(tx)
    assert got["step"].tolist() == [0, 1, 1, 2, 2, 3]
    twice = fo.chain(fo.with_metrics(fo.clip(1.0)), fo.with_metrics(fo.sgd(0.1)))
    with pytest.raises(ValueError, match="got 2: take that of one of them"):
        fo.metrics(twice.init(PARAMS))
    assert "clipped_norm" in fo.metrics(twice.init(PARAMS)[0])
