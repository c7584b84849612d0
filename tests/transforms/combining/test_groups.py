"""groups: path rules to hyperparameters; what stays one for all leaves; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ...helpers import assert_close, make_grads, make_params, train

PARAMS, GRADS = make_params(), make_grads(3)


def after(tx, leaf=None):
    params = train(tx, PARAMS, GRADS)[0]
    return params if leaf is None else params[leaf] if leaf == "scale" else params["dense"][leaf]


def test_each_leaf_as_if_alone():
    tx = fo.groups(fo.adamw(0.1), {"*/bias": {"weight_decay": 0.5}, "scale": {"b2": 0.9, "learning_rate": 0.3}})
    assert_close(after(tx, "bias"), after(fo.adamw(0.1, weight_decay=0.5), "bias"), rtol=1e-6)
    assert_close(after(tx, "scale"), after(fo.adamw(0.3, b2=0.9), "scale"), rtol=1e-6)
    assert_close(after(tx, "kernel"), after(fo.adamw(0.1), "kernel"), rtol=1e-6)


def test_the_first_match_holds():
    rules = {"*/bias": {"learning_rate": 0.5}, "dense/**": {"learning_rate": 0.2}}
    tx = fo.groups(fo.sgd(0.1), rules)
    for leaf, rate in (("bias", 0.5), ("kernel", 0.2), ("scale", 0.1)):
        assert_close(after(tx, leaf), after(fo.sgd(rate), leaf), rtol=1e-6)
    spared = fo.groups(fo.sgd(0.1), {"*/bias": {}, "**": {"learning_rate": 0.2}})
    assert_close(after(spared, "bias"), after(fo.sgd(0.1), "bias"), rtol=1e-6)
    assert_close(after(spared, "scale"), after(fo.sgd(0.2), "scale"), rtol=1e-6)


def test_a_global_norm_is_of_all_leaves_but_the_frozen():
    tx = fo.chain(fo.clip_by_global_norm(1.0), fo.scale_by_learning_rate(0.1))
    grads = {"a": jnp.array(3.0), "b": jnp.array(4.0), "c": jnp.array(12.0)}
    grouped = fo.groups(tx, {"a": {"learning_rate": 0.2}, "c": {"learning_rate_factor": 3.0}})
    updates, _ = grouped.update(grads, grouped.init(grads))
    assert_close(updates, {"a": -0.6 / 13, "b": -0.4 / 13, "c": -3.6 / 13}, rtol=1e-5)
    frozen = fo.groups(tx, {"c": "frozen"})
    updates, _ = frozen.update(grads, frozen.init(grads))
    assert_close(updates, {"a": -0.06, "b": -0.08, "c": 0.0}, rtol=1e-5)


def test_frozen_leaves_have_no_state_and_others_one_count():
    state = jax.eval_shape(fo.groups(fo.adam(0.1), {"dense/**": "frozen"}).init, PARAMS)
    assert sorted(x.shape for x in jax.tree.leaves(state)) == [(), (), ()]
    state = jax.eval_shape(fo.groups(fo.adamw(0.1), {"scale": {"weight_decay": 0.0}}).init, PARAMS)
    assert jax.tree.structure(state[0]) == jax.tree.structure(jax.eval_shape(fo.scale_by_adam().init, PARAMS))


@pytest.mark.parametrize(
    "mask", [{"*/kernel": True}, {"dense": {"bias": False, "kernel": True}, "scale": False}, None]
)
def test_a_rule_on_weight_decay_overrides_the_mask(mask):
    tx = fo.groups(fo.adamw(0.1, weight_decay=0.1, mask=mask), {"*/bias": {"weight_decay": 0.5}})
    assert_close(after(tx, "bias"), after(fo.adamw(0.1, weight_decay=0.5), "bias"), rtol=1e-6)
    expected = fo.adamw(0.1, weight_decay=0.1, mask=mask)
    assert_close([after(tx, x) for x in ("kernel", "scale")], [after(expected, x) for x in ("kernel", "scale")])


def test_inside_of_everything():
    rules = {"*/bias": {"weight_decay": 0.5}}
    grouped = fo.groups(fo.adamw(0.1), rules)
    for build in (
        lambda tx: fo.named_chain(("clip", fo.clip(9.0)), ("rule", tx)),
        lambda tx: fo.MultiSteps(tx, 2),
        lambda tx: fo.apply_if_finite(tx, 2),
        lambda tx: fo.masked(tx, fo.PathRules({"scale": False})),
        lambda tx: fo.partition({"a": tx, "b": fo.sgd(0.1)}, {"scale": "b", "**": "a"}),
        lambda tx: fo.schedule_free(tx, 0.1),
    ):
        assert fo.groups(build(fo.adamw(0.1)), rules) == build(grouped)
        assert_close(after(fo.groups(build(fo.adamw(0.1)), rules)), after(build(grouped)))


def test_a_sweep_over_a_group():
    txs = [fo.groups(fo.sgd(0.1), {"scale": {"learning_rate": rate}}) for rate in (0.1, 0.2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *txs)
    moved = jax.vmap(lambda tx: after(tx, "scale"))(stacked)
    assert_close(moved, jnp.stack([after(fo.sgd(rate), "scale") for rate in (0.1, 0.2)]), rtol=1e-6)


def test_a_schedule_for_a_group_and_a_factor_for_what_is_no_chain():
    schedule = fo.linear_schedule(0.1, 0.0, 2)
    tx = fo.groups(fo.sgd(0.1), {"scale": {"learning_rate": schedule}})
    assert_close(after(tx, "scale"), after(fo.sgd(schedule), "scale"), rtol=1e-6)
    tx = fo.groups(fo.scale(-1.0), {"scale": {"learning_rate_factor": 0.5}})
    assert_close(after(tx, "scale"), after(fo.scale(-0.5), "scale"))


def test_prints_as_code_and_is_unchanged_without_a_change():
    tx = fo.groups(fo.sgd(0.1), {"head/*": {"learning_rate_factor": 10.0}, "embed": "frozen"})
    assert eval(repr(tx), vars(fo)) == tx
    assert fo.groups(fo.sgd(0.1), {"head/*": {}}) == fo.sgd(0.1)


@pytest.mark.parametrize(
    "rules, kind, message",
    [
        ({"scale": {"weight_decay": 0.1}}, ValueError, "no link has an argument 'weight_decay'.*add_decayed_weights"),
        ({"scale": {"learning_rat": 0.1}}, ValueError, r"did you mean learning_rate\? The arguments are b1"),
        ({"scale": {"b2": 1.5}}, ValueError, r"rules\['scale'\]: b2 must be in \[0, 1\), got 1.5"),
        ({"scale": {"b2": "x"}}, TypeError, r"rules\['scale'\]: b2 must be a number"),
        (
            {"scale": {"learning_rate_factor": -1.0}},
            ValueError,
            r"rules\['scale'\]\['learning_rate_factor'\] must be in",
        ),
        ({"scale": 0.1}, TypeError, r"rules\['scale'\] must be a dict of arguments or \"frozen\", got 0.1"),
        ({"scale": "froze"}, TypeError, "got 'froze'"),
        ({3: {}}, TypeError, "a path pattern must be a string, got 3"),
        ({}, TypeError, "rules must be a dict such as"),
        ("frozen", TypeError, "rules must be a dict such as"),
    ],
)
def test_what_is_refused(rules, kind, message):
    with pytest.raises(kind, match=message):
        fo.groups(fo.adam(0.1), rules)


@pytest.mark.parametrize("own", ["frozen", {"learning_rate": 0.2}, {"learning_rate_factor": 0.2}])
def test_a_rule_that_matches_nothing_names_the_nearest_paths(own):
    with pytest.raises(ValueError, match="rule 'dense/kernl' matches no leaf; the nearest paths are dense/kernel"):
        fo.groups(fo.adam(0.1), {"dense/kernl": own}).init(PARAMS)


def test_a_rule_may_name_what_another_took():
    tx = fo.groups(fo.adamw(0.1), {"dense/**": "frozen", "*/bias": {"weight_decay": 0.5}})
    np.testing.assert_array_equal(after(tx, "bias"), np.broadcast_to(PARAMS["dense"]["bias"], (3, 4)))
