"""add_decayed_weights: how much, which leaves, and what it needs."""

import jax.numpy as jnp
import pytest

from functional_opt import adamw, add_decayed_weights, lion

from ...helpers import assert_close

PARAMS = {"dense": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)}, "norm": {"scale": jnp.full(2, 2.0)}}
ZERO = {"dense": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}, "norm": {"scale": jnp.zeros(2)}}


def decayed(mask):
    """Which leaves get a share of themselves: kernel, bias, scale."""
    tx = add_decayed_weights(0.5, mask)
    updates, _ = tx.update(ZERO, tx.init(PARAMS), PARAMS)
    leaves = updates["dense"]["kernel"], updates["dense"]["bias"], updates["norm"]["scale"]
    assert all(float(jnp.max(x)) in (0.0, 1.0) for x in leaves)
    return tuple(bool(jnp.all(x == 1.0)) for x in leaves)


@pytest.mark.parametrize(
    "mask, expected",
    [
        (None, (True, True, True)),
        ({"*/bias": False}, (True, False, True)),
        ({"*/kernel": True}, (True, False, False)),
        ({"dense/bias": False, "norm/*": False, "**": True}, (True, False, False)),
        ({"dense": True, "norm": False}, (True, True, False)),
        (lambda params: {"dense": {"kernel": True, "bias": False}, "norm": True}, (True, False, True)),
    ],
)
def test_masks(mask, expected):
    assert decayed(mask) == expected


def test_the_rate_may_be_a_schedule():
    tx = add_decayed_weights(lambda count: 0.1 * count)
    state, seen = tx.init({"w": 1.0}), []
    for _ in range(3):
        updates, state = tx.update({"w": jnp.zeros([])}, state, {"w": jnp.full([], 10.0)})
        seen.append(float(updates["w"]))
    assert seen == pytest.approx([0.0, 1.0, 2.0]) and int(state.count) == 3


@pytest.mark.parametrize("make", [adamw, lion])
def test_optimizers_leave_masked_weights_to_the_gradient(make):
    tx = make(0.1, weight_decay=0.5, mask={"*/kernel": True})
    updates, _ = tx.update(ZERO, tx.init(PARAMS), PARAMS)
    assert_close(updates["dense"]["bias"], jnp.zeros(2))
    assert_close(updates["dense"]["kernel"], jnp.full((2, 2), -0.1), rtol=1e-6)


@pytest.mark.parametrize("make", [adamw, lion, lambda rate: add_decayed_weights(rate)])
def test_needs_params(make):
    with pytest.raises(
        ValueError, match=r"add_decayed_weights needs the params: call update\(updates, state, params\)"
    ):
        make(0.1).update(ZERO, make(0.1).init(PARAMS))


def test_a_mask_that_does_not_fit_is_refused_before_training():
    with pytest.raises(
        ValueError, match=r"`mask` has no leaf at \['norm'\]\['scale'\]; params has one of shape \(2,\)"
    ):
        adamw(0.1, mask={"dense": True}).init(PARAMS)
    with pytest.raises(ValueError, match="weight_decay must be in .*, got -0.1"):
        adamw(0.1, weight_decay=-0.1)
