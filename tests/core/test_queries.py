"""Parts of a nested state by field name, through every wrapper."""

import jax
import jax.numpy as jnp
import pytest

from functional_opt import (
    MultiSteps,
    adam,
    apply_if_finite,
    chain,
    clip_by_global_norm,
    ema,
    masked,
    named_chain,
    partition,
    scale,
    sgd,
    trace,
)
from functional_opt.core.queries import get, get_all_with_path
from functional_opt.core.queries import set as set_fields

from ..helpers import assert_close, assert_same_types

PARAMS = {"w": jnp.ones(2), "mu": jnp.ones(3)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: chain(clip_by_global_norm(1.0), tx),
        lambda tx: named_chain(("clip", clip_by_global_norm(1.0)), ("adam", tx)),
        lambda tx: masked(tx, True),
        lambda tx: partition({"a": tx, "b": scale(1.0)}, "a"),
        lambda tx: MultiSteps(tx, 2),
        lambda tx: apply_if_finite(tx, 2),
        lambda tx: [tx],
    ],
    ids=["plain", "chain", "named_chain", "masked", "partition", "MultiSteps", "apply_if_finite", "list"],
)
def test_get_and_set_through_wrappers(wrap):
    wrapped = wrap(adam(0.1))
    state = [wrapped[0].init({"w": 1.0})] if isinstance(wrapped, list) else wrapped.init({"w": 1.0})
    assert get(state, "mu") == {"w": 0.0}
    new = set_fields(state, count=jnp.int32(7), nu={"w": jnp.float32(2.0)})
    assert_same_types(new, state)
    assert int(get(new, "count")) == 7 and get(new, "nu") == {"w": 2.0} and int(get(state, "count")) == 0
    assert_close(set_fields(new, count=jnp.int32(0), nu={"w": jnp.float32(0.0)}), state)


def test_a_default_for_what_is_not_there():
    assert get(sgd(0.1).init(PARAMS), "mu") is None and get((), "mu", 3) == 3


def test_several_of_one_name():
    state = chain(ema(0.9), adam(0.1)).init({"w": jnp.ones(2)})
    assert [jax.tree_util.keystr(path) for path, _ in get_all_with_path(state, "count")] == [
        "[0].count",
        "[1][0].count",
    ]
    with pytest.raises(KeyError, match=r"'count' is found in several places: \[0\].count, \[1\]\[0\].count"):
        get(state, "count")
    both = set_fields(state, count=jnp.int32(5))
    assert [int(x) for _, x in get_all_with_path(both, "count")] == [5, 5]


def test_a_container_comes_before_what_its_children_hold():
    state = {"inner": {"rate": 1.0}, "rate": 2.0}
    assert [x for _, x in get_all_with_path(state, "rate")] == [2.0, 1.0]


def test_a_param_of_the_same_name_is_found_too():
    """Names of params are entries of the state as well; the path tells them apart."""
    paths = [jax.tree_util.keystr(path) for path, _ in get_all_with_path(trace(0.9).init(PARAMS), "mu")]
    assert paths == [".trace['mu']"]


def test_setting_what_is_not_there():
    with pytest.raises(KeyError, match=r"the state has no field 'rate'; its fields are \['count', 'mu', 'nu', 'w'\]"):
        set_fields(adam(0.1).init({"w": 1.0}), rate=0.1)


def test_under_jit():
    tx = adam(0.1)
    restarted = jax.jit(lambda state: set_fields(state, count=get(state, "count") * 0))
    _, state = tx.update(PARAMS, tx.init(PARAMS))
    assert int(get(restarted(state), "count")) == 0
    assert_close(get(restarted(state), "nu"), get(state, "nu"))


def test_by_the_name_of_a_named_tuple_and_with_a_filter():
    state = chain(ema(0.9), adam(0.1)).init({"w": jnp.ones(2)})
    assert get(state, "EmaState") is state[0]
    of_adam = lambda path, x: path[-1].tuple_name == "ScaleByAdamState"  # noqa: E731
    assert get(state, "count", filtering=of_adam) is state[1][0].count
    new = set_fields(state, of_adam, count=jnp.int32(9))
    assert [int(x) for _, x in get_all_with_path(new, "count")] == [0, 9]
    assert set_fields(state, EmaState=None)[0] is None
    with pytest.raises(KeyError, match="the state has no field 'ema'"):
        set_fields(state, of_adam, ema=0)
