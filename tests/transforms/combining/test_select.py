"""masked, partition, freeze: who transforms which leaf, what the states hold, and what Optax would do."""

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functional_opt import (
    MaskedNode,
    adam,
    adamw,
    add_decayed_weights,
    apply_updates,
    chain,
    clip_by_global_norm,
    freeze,
    masked,
    partition,
    scale,
    set_to_zero,
    sgd,
    trace,
)

from ...helpers import assert_close, at, make_grads, make_params, structs, train

MASK = {"dense": {"bias": False, "kernel": True}, "scale": True}
LABELS = {"dense": {"bias": "slow", "kernel": "fast"}, "scale": "slow"}


def test_left_out_leaves_pass_through_and_have_no_state():
    tx, params, grads = masked(chain(trace(0.9), scale(-1.0)), MASK), make_params(), at(make_grads(1), 0)
    updates, state = tx.update(grads, tx.init(params), params)
    assert updates["dense"]["bias"] is grads["dense"]["bias"]
    assert_close(updates["scale"], -grads["scale"])
    assert state.inner_state[0].trace["dense"]["bias"] == MaskedNode()
    assert len(jax.tree.leaves(state)) == 2


def test_what_is_masked_out_is_not_seen():
    """A norm over the chosen leaves only."""
    tx = masked(clip_by_global_norm(1.0), {"a": True, "b": False})
    updates, _ = tx.update({"a": jnp.array([3.0, 4.0]), "b": jnp.array(1e6)}, tx.init({"a": jnp.zeros(2), "b": 0.0}))
    assert_close(updates, {"a": jnp.array([0.6, 0.8]), "b": jnp.array(1e6)}, rtol=1e-6)


@given(st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_a_mask_and_its_opposite_are_the_whole(bools):
    grads = at(make_grads(1), 0)
    mask = jax.tree.unflatten(jax.tree.structure(grads), bools)
    opposite = jax.tree.map(lambda m: not m, mask)
    tx = chain(masked(scale(2.0), mask), masked(scale(2.0), opposite))
    assert_close(tx.update(grads, tx.init(grads))[0], jax.tree.map(lambda g: 2 * g, grads))


def test_groups_are_on_their_own():
    params, grads = make_params(), make_grads(3)
    tx = partition({"fast": adam(0.1), "slow": sgd(0.01, momentum=0.9)}, LABELS)
    _, updates, state = train(tx, params, grads)
    _, fast, _ = train(adam(0.1), params, grads)
    _, slow, _ = train(sgd(0.01, momentum=0.9), params, grads)
    expected = {"dense": {"bias": slow["dense"]["bias"], "kernel": fast["dense"]["kernel"]}, "scale": slow["scale"]}
    assert_close(updates, expected, rtol=1e-6)
    assert set(state.inner_states) == {"fast", "slow"}
    assert state.inner_states["fast"].inner_state[0].mu["scale"] == MaskedNode()


def test_groups_see_the_original_updates():
    """What one group does to its leaves the next one does not see."""
    tx = partition({"a": scale(10.0), "b": clip_by_global_norm(1.0)}, {"x": "a", "y": "b"})
    updates, _ = tx.update({"x": jnp.array(3.0), "y": jnp.array(5.0)}, tx.init({"x": 0.0, "y": 0.0}))
    assert_close(updates, {"x": jnp.array(30.0), "y": jnp.array(1.0)}, rtol=1e-6)


def test_groups_with_other_labels_than_strings():
    tx = partition({0: scale(1.0), None: set_to_zero(), "unused": scale(3.0)}, {"x": 0, "y": 0})
    assert tx.update({"x": 1.0, "y": 2.0}, tx.init({"x": 0.0, "y": 0.0}))[0] == {"x": 1.0, "y": 2.0}


def test_freezing():
    params, grads = make_params(), at(make_grads(1), 0)
    tx = chain(adam(0.1), freeze({"dense/*": True}))
    updates, _ = tx.update(grads, tx.init(params), params)
    new = apply_updates(params, updates)
    assert_close(new["dense"], params["dense"])
    assert float(new["scale"]) != float(params["scale"])
    assert freeze(True) == masked(set_to_zero(), True)


def test_optaxs_masked_nodes_are_passed_over():
    params, grads = make_params(), at(make_grads(1), 0)
    tx = optax.masked(chain(clip_by_global_norm(1.0), adam(0.1)), MASK)
    ours = masked(chain(clip_by_global_norm(1.0), adam(0.1)), MASK)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert_close(updates, ours.update(grads, ours.init(params), params)[0])


def test_an_optax_transformation_inside():
    params, grads = make_params(), make_grads(2)
    tx = partition({"fast": optax.adam(0.1), "slow": optax.sgd(0.1)}, LABELS)
    peer = optax.partition({"fast": optax.adam(0.1), "slow": optax.sgd(0.1)}, LABELS)
    assert_close(train(tx, params, grads)[1], train(peer, params, grads)[1], rtol=1e-6)


@pytest.mark.parametrize("wrap", [lambda tx, on: masked(tx, MASK, on), lambda tx, on: partition({1: tx}, 1, on)])
def test_extra_arguments_of_the_same_structure(wrap):
    seen = []

    class Spy:
        def init(self, params):
            return ()

        def update(self, updates, state, params=None, *, other=None):
            seen.append(other)
            return updates, state

    grads = at(make_grads(1), 0)
    for on in (True, False):
        tx = wrap(Spy(), on)
        tx.update(grads, tx.init(grads), grads, other=grads)
    kept, whole = seen
    assert whole is grads
    masked_out = isinstance(kept["dense"]["bias"], MaskedNode)
    assert masked_out == isinstance(tx, masked) and structs(kept["scale"]) == structs(grads["scale"])


def test_decay_of_some_in_a_group_of_some():
    """A mask within a group: it is resolved on what the group sees."""
    tx = masked(add_decayed_weights(0.5, mask={"*/kernel": True}), {"dense": True, "scale": False})
    params = make_params()
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert_close(updates["dense"]["kernel"], 0.5 * params["dense"]["kernel"])
    assert_close(updates["dense"]["bias"], jnp.zeros(4))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: partition([sgd(0.1)], "a"), "transforms must be a dict from label to transformation, got"),
        (lambda: partition({"a": sgd}, "a"), r"transforms\['a'\] must be a gradient .* call it: sgd\(...\)"),
        (lambda: masked(sgd, True), r"inner must be a gradient transformation .* call it: sgd\(...\)"),
    ],
)
def test_what_is_no_transformation(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_updates_that_do_not_fit_the_mask():
    tx = masked(scale(1.0), MASK)
    state = tx.init(make_params())
    with pytest.raises(ValueError, match=r"`mask` has a leaf at \['scale'\], where params has none"):
        tx.update({"dense": make_params()["dense"]}, state)


def test_a_mask_by_path_inside_a_partition_may_name_leaves_of_other_groups():
    tx = partition({"a": adamw(0.1, mask={"*/bias": False}), "b": sgd(0.1)}, {"head/**": "a", "**": "b"})
    params = {"head": {"kernel": jnp.ones(2)}, "body": {"bias": jnp.ones(1)}}
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["body"]["bias"].item() == pytest.approx(-0.1)
    with pytest.raises(ValueError, match=r"rule '\*/bia' matches no leaf"):
        partition({"a": adamw(0.1, mask={"*/bia": False})}, "a").init(params)


def test_the_state_of_another_optimizer_is_refused():
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"scale_by_adam.update: .* must be a ScaleByAdamState\(count, mu, nu\)"):
        adam(0.1).update(params, sgd(0.1).init(params), params)
    tx, other = (partition({label: sgd(0.1)}, label) for label in "ab")
    with pytest.raises(ValueError, match=r"the state must be a PartitionState with the labels \['a'\], .* \['b'\]"):
        tx.update(params, other.init(params), params)
