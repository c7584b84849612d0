"""Transformations that run at some steps only, all leaves as one vector, and leaves that stay."""

import jax
import jax.numpy as jnp
import pytest

from functional_opt import (
    EmptyState,
    MaskedNode,
    adam,
    apply_updates,
    conditionally_mask,
    conditionally_transform,
    flatten,
    global_norm,
    scale,
    scale_by_trust_ratio,
    selective_transform,
    trace,
)

from ...helpers import assert_close, at, make_grads, make_params, train, train_eagerly


def test_the_inner_state_waits():
    """The steps at which it runs are as if there were no others."""
    params, grads = make_params(), make_grads(6)
    expected, _ = train_eagerly(trace(0.9), params, jax.tree.map(lambda g: g[1::2], grads), steps=3)
    for wrap, otherwise in ((conditionally_transform, 1.0), (conditionally_mask, 0.0)):
        tx = wrap(trace(0.9), lambda step: step % 2 == 1)
        _, updates, state = train(tx, params, grads)
        assert_close(at(updates, 5), expected, rtol=1e-5)
        assert_close(at(updates, 4), scale(otherwise).update(at(grads, 4), EmptyState())[0])
        assert int(state.step) == 6


def test_extra_arguments_decide():
    tx = conditionally_mask(scale(-1.0), lambda step, value, **_: value > 1, forward_extra_args=True)
    for value, expected in ((2.0, -3.0), (0.5, 0.0)):
        assert tx.update({"w": 3.0}, tx.init({"w": 0.0}), value=value, other=None)[0]["w"] == expected


def test_a_condition_must_be_one_bool():
    tx = conditionally_transform(scale(-1.0), lambda step: jnp.ones(2) > step)
    with pytest.raises(ValueError, match="should_transform_fn must return a bool scalar, got"):
        tx.update({"w": 3.0}, tx.init({"w": 0.0}))


@pytest.mark.parametrize(
    "mask, left_out",
    [
        ({"dense": True, "scale": False}, MaskedNode()),
        ({"dense/*": True, "scale": False}, {"bias": MaskedNode(), "kernel": MaskedNode()}),
        (lambda p: {**p, "dense": True, "scale": False}, MaskedNode()),
    ],
)
def test_frozen_leaves_have_no_state(mask, left_out):
    tx, params = selective_transform(adam(0.1), freeze_mask=mask), make_params()
    updates, state = train_eagerly(tx, params, make_grads(1))
    assert updates["dense"]["bias"].tolist() == [0.0] * 4 and updates["scale"] != 0.0
    train_state = state.inner_states["train"].inner_state
    assert train_state[0].mu["dense"] == left_out
    assert state.inner_states["freeze"].inner_state == EmptyState()


def test_flat_is_the_same_for_what_is_by_element_and_not_by_leaf():
    params, grads = make_params(), make_grads(3)
    assert_close(train(flatten(adam(0.1)), params, grads)[0], train(adam(0.1), params, grads)[0], rtol=1e-6)
    u, _ = train_eagerly(flatten(scale_by_trust_ratio()), params, grads)
    assert abs(global_norm(u) - global_norm(params)) < 1e-5


def test_flat_leaves_of_several_dtypes_and_none():
    params = {"a": jnp.ones(2, "bfloat16"), "b": jnp.ones((1, 2)), "c": jnp.ones(()), "z": jnp.ones(1, complex)}
    tx = flatten(trace(0.5))
    state = tx.init(params)
    assert state.trace.shape == (6,) and state.trace.dtype == jnp.complex64
    grads = {**jax.tree.map(lambda x: 2 * x, params), "c": None}
    for _ in range(2):
        u, state = tx.update(grads, state, params)
    assert u["a"].tolist() == [3.0, 3.0] and u["a"].dtype == jnp.bfloat16 and u["c"] is None
    assert apply_updates(params, u)["b"].tolist() == [[4.0, 4.0]] and u["z"].tolist() == [3.0]
    assert state.trace[4] == 0.0
