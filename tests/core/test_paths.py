"""Path rules, masks and labels: what matches, which rule wins, and errors that name the leaf."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from hypothesis import assume, given
from hypothesis import strategies as st

from functional_opt import PathRules, freeze, masked, partition, scale
from functional_opt.core.paths import matches

PARAMS = {
    "encoder": {"layer_0": {"bias": np.ones(2), "kernel": np.ones((2, 2))}, "norm_0": {"scale": np.ones(2)}},
    "head": {"bias": np.ones(3), "kernel": np.ones((2, 3))},
    "bias": np.ones(1),
}
PATHS = ["bias", "encoder/layer_0/bias", "encoder/layer_0/kernel", "encoder/norm_0/scale", "head/bias", "head/kernel"]


def chosen(mask, params=PARAMS):
    """The paths that a mask picks, seen through the public names: where freezing makes the update zero."""
    tx = freeze(mask)
    updates, _ = tx.update(params, tx.init(params), params)
    zero = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda u: not np.any(u), updates))
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, is_zero in zero if is_zero]


@pytest.mark.parametrize(
    "pattern, picked",
    [
        ("bias", ["bias", "encoder/layer_0/bias", "head/bias"]),
        ("*/bias", ["encoder/layer_0/bias", "head/bias"]),
        ("/*/bias", ["head/bias"]),
        ("/bias", ["bias"]),
        ("encoder/**", ["encoder/layer_0/bias", "encoder/layer_0/kernel", "encoder/norm_0/scale"]),
        ("encoder/**/bias", ["encoder/layer_0/bias"]),
        ("/head/kernel", ["head/kernel"]),
        ("norm_[0-9]/*", ["encoder/norm_0/scale"]),
        ("layer_?/k*", ["encoder/layer_0/kernel"]),
        ("**", PATHS),
        ("head", []),
        ("/kernel", []),
        ("BIAS", []),
    ],
)
def test_patterns(pattern, picked):
    assert [path for path in PATHS if matches(pattern, path)] == picked
    if picked:
        assert chosen(PathRules([(pattern, True), ("**", False)])) == picked


names = st.text("ab_0", min_size=1, max_size=3)
paths = st.lists(names, min_size=1, max_size=4)


@given(paths)
def test_a_path_matches_itself_its_ends_and_the_wildcards(parts):
    path = "/".join(parts)
    for i in range(len(parts)):
        assert matches("/".join(parts[i:]), path)
    for pattern in ("**", "*", "/" + path, "**/" + path, "/".join("*" * len(parts)), parts[0] + "/**"):
        assert matches(pattern, path)
    assert not matches(path + "/more", path) and not matches("/x/" + path, path)


@given(st.permutations(["*/bias", "encoder/**", "head/*", "**"]))
def test_the_first_match_wins(patterns):
    labels = PathRules({pattern: pattern for pattern in patterns}).resolve(PARAMS)
    for path, label in zip(PATHS, jax.tree.leaves(labels), strict=True):
        assert label == next(pattern for pattern in patterns if matches(pattern, path))


def test_a_mask_of_one_kind_of_rules_is_the_opposite_elsewhere():
    assert chosen({"*/bias": True}) == ["encoder/layer_0/bias", "head/bias"]
    assert chosen({"*/bias": False}) == [p for p in PATHS if p not in ("encoder/layer_0/bias", "head/bias")]
    with pytest.raises(ValueError, match="no rule matches 'bias'; add a last rule '\\*\\*' for all other leaves"):
        chosen({"encoder/**": True, "head/*": False})


def test_lists_and_attributes_have_paths_too():
    params = {"layers": [np.ones(1), np.ones(2)], "rule": scale(1.0)}
    assert PathRules({"layers/1": "x", "rule/step_size": "y", "**": "z"}).resolve(params) == {
        "layers": ["z", "x"],
        "rule": jax.tree.map(lambda _: "y", scale(1.0)),
    }


@pytest.mark.parametrize(
    "mask",
    [
        {"encoder": False, "head": {"bias": True, "kernel": False}, "bias": True},
        lambda params: {"encoder": False, "head": {"bias": True, "kernel": False}, "bias": True},
        PathRules({"head/bias": True, "/bias": True, "**": False}),
        lambda params: PathRules({"head/bias": True, "/bias": True, "**": False}),
        {"encoder": np.False_, "head": {"bias": np.True_, "kernel": np.array(False)}, "bias": jnp.array(True)},
    ],
    ids=["prefix", "function", "rules", "function of rules", "arrays"],
)
def test_masks_in_every_form(mask):
    assert chosen(mask) == ["bias", "head/bias"]


def test_a_whole_tree_at_once():
    assert chosen(True) == PATHS and chosen(False) == []


def test_rules_are_values():
    rules = PathRules({"*/bias": "a", "**": "b"})
    assert rules == PathRules([("*/bias", "a"), ("**", "b")]) and hash(rules) == hash(PathRules(rules.rules))
    assert rules != PathRules({"**": "b", "*/bias": "a"})
    assert repr(rules) == "PathRules({'*/bias': 'a', '**': 'b'})" and eval(repr(rules)) == rules
    assert pickle.loads(pickle.dumps(rules)) == rules and jax.tree.leaves(rules) == []
    assert PathRules({"w": 1}).resolve({}) == {}


@pytest.mark.parametrize(
    "mask, error, message",
    [
        ({"*/biass": True}, ValueError, r"rule '\*/biass' matches no leaf; the nearest paths are .*bias"),
        ({"encoder": True, "head": True}, ValueError, r"`mask` has no leaf at \['bias'\]; .* of shape \(1,\)"),
        (
            {"encoder": True, "head": {"bias": True}, "bias": True},
            ValueError,
            r"`mask` has no leaf at \['head'\]\['kernel'\]; params has one of shape \(2, 3\)",
        ),
        (
            {"encoder": True, "head": True, "bias": True, "neck": True},
            ValueError,
            r"`mask` has a leaf at \['neck'\], where params has none",
        ),
        ({"encoder": 1, "head": True, "bias": True}, TypeError, r"mask\['encoder'\] must be True or False, .* got 1"),
        ({"encoder/*": "yes"}, TypeError, r"mask\['encoder/\*'\] must be True or False.* got 'yes'"),
        ("bias", TypeError, r"mask must be True or False.* got 'bias'; write it as a rule: {'\*/bias': False}"),
        (["bias"], TypeError, r"mask\[0\] must be True or False.* got 'bias'; write it as a rule"),
        (lambda params: 1.0, TypeError, "mask must be True or False.* got 1.0"),
        (lambda params: None, TypeError, "`mask` must be .* or path rules, got None"),
        (None, TypeError, "`mask` must be .* or path rules, got None"),
    ],
)
def test_masks_that_do_not_fit(mask, error, message):
    with pytest.raises(error, match=message):
        masked(scale(1.0), mask).init(PARAMS)


def test_a_mask_of_other_containers():
    params = FrozenDict({"a": {"w": 1.0}, "b": {"w": 1.0}})
    with pytest.raises(ValueError, match=r"`mask` has other containers than params: .*FrozenDict.* Path rules"):
        masked(scale(0.1), {"a": True, "b": False}).init(params)


def test_a_traced_mask_is_refused():
    with pytest.raises(TypeError, match=r"mask\['w'\] must be True or False, known before tracing"):
        jax.jit(lambda m: masked(scale(1.0), {"w": m}).init({"w": 1.0}))(True)


@pytest.mark.parametrize(
    "labels, error, message",
    [
        (
            {"encoder": "a", "head": "b", "bias": "c"},
            ValueError,
            r"params\['bias'\] has the label 'c', .* \['a', 'b'\]",
        ),
        ({"encoder/**": "a", "head/*": "b"}, ValueError, "no rule matches 'bias'; add a last rule"),
        ({"encoder": "a", "head": np.ones(2), "bias": "b"}, TypeError, r"param_labels\['head'\] must be a hashable"),
        (lambda params: None, TypeError, "`param_labels` must be .* or path rules, got None"),
    ],
)
def test_labels_that_do_not_fit(labels, error, message):
    with pytest.raises(error, match=message):
        partition({"a": scale(1.0), "b": scale(2.0)}, labels).init(PARAMS)


@given(st.dictionaries(names, st.dictionaries(names, st.just(1.0), min_size=1), min_size=1), names)
def test_every_leaf_gets_one_label(params, name):
    assume(any(name in group for group in params.values()))
    labels = PathRules({name: "hit", "**": "rest"}).resolve(params)
    assert labels == {g: {k: "hit" if k == name else "rest" for k in group} for g, group in params.items()}
