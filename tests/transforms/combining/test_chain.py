"""chain, named_chain, identity: order, dtypes between links, extra arguments, states that do not belong."""

import jax
import jax.numpy as jnp
import optax
import pytest

from functional_opt import (
    EmptyState,
    GradientTransformation,
    MultiSteps,
    adam,
    add_decayed_weights,
    apply_if_finite,
    chain,
    clip,
    identity,
    masked,
    named_chain,
    partition,
    scale,
    scale_by_adam,
    scale_by_learning_rate,
    sgd,
    trace,
    transformation,
)

from ...helpers import assert_close, at, make_grads, make_params, train_eagerly


@transformation
class probe(GradientTransformation):
    """Adds nothing, and notes what reaches it."""

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        probe.seen = {"dtype": jax.tree.leaves(updates)[0].dtype, "params": params, **extra}
        return updates, state


def test_links_act_in_order():
    params, grads = {"w": 10.0}, {"w": 4.0}
    for tx, expected in [
        (chain(clip(1.0), scale(-2.0)), -2.0),
        (chain(scale(-2.0), clip(1.0)), -1.0),
        (chain(add_decayed_weights(0.5), scale(2.0)), 18.0),
        (chain(scale(2.0), add_decayed_weights(0.5)), 13.0),
    ]:
        assert float(tx.update(grads, tx.init(params), params)[0]["w"]) == expected


def test_states_in_order_and_by_name():
    tx = chain(trace(0.5), identity())
    state = tx.init({"w": 0.0})
    assert state[0].trace == {"w": 0.0} and state[1] == EmptyState()
    named = named_chain(("momentum", trace(0.5)), ("rest", identity()))
    _, state = named.update({"w": 3.0}, named.init({"w": 0.0}))
    assert list(state) == ["momentum", "rest"] and state["momentum"].trace == {"w": 3.0}


def test_nesting_changes_nothing():
    params, grads = make_params(), make_grads(3)
    links = scale_by_adam(), add_decayed_weights(0.1), scale_by_learning_rate(0.1)
    flat, _ = train_eagerly(chain(*links), params, grads, steps=3)
    nested, _ = train_eagerly(chain(chain(links[0], links[1]), chain(), chain(links[2])), params, grads, steps=3)
    assert_close(nested, flat)


def test_no_links_is_the_identity():
    assert chain().init({"w": 0.0}) == () and chain().update({"w": 1.0}, ()) == ({"w": 1.0}, ())
    assert repr(chain()) == "chain()" and repr(named_chain()) == "named_chain()"


def test_links_work_in_float32_and_the_result_is_rounded_once():
    params, grads = make_params("bfloat16"), at(make_grads(1), 0)
    tx = chain(scale(1 / 3), probe(), scale(3.0))
    updates, _ = tx.update(grads, tx.init(params), params)
    assert probe.seen["dtype"] == jnp.float32
    assert jax.tree.leaves(probe.seen["params"])[0].dtype == jnp.float32
    assert_close(updates, jax.tree.map(lambda g: g.astype("bfloat16"), grads))


def test_without_params_the_dtype_is_that_of_the_gradients():
    tx = chain(scale(2.0), probe())
    updates, _ = tx.update({"w": jnp.ones(2, "float16")}, tx.init(None))
    assert updates["w"].dtype == jnp.float16 and probe.seen["params"] is None
    assert probe.seen["dtype"] == jnp.float32


def test_the_first_link_sees_float32():
    tx, g = chain(probe()), jnp.ones(2, "bfloat16")
    tx.update({"w": g}, tx.init({"w": g}), {"w": g})
    assert probe.seen["dtype"] == jnp.float32


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: chain(chain(tx)),
        lambda tx: named_chain(("probe", tx)),
        lambda tx: masked(tx, True),
        lambda tx: partition({"a": tx}, "a"),
        lambda tx: MultiSteps(tx, 1),
        lambda tx: apply_if_finite(tx, 1),
        lambda tx: optax.chain(optax.GradientTransformationExtraArgs(*tx)),
        lambda tx: chain(optax.chain(optax.GradientTransformationExtraArgs(*tx))),
        lambda tx: GradientTransformation(tx.init, tx.update),
    ],
    ids=["chain", "named_chain", "masked", "partition", "MultiSteps", "apply_if_finite", "optax", "both", "pair"],
)
def test_extra_arguments_go_all_the_way_down(wrap):
    tx = wrap(probe())
    grads = {"w": jnp.ones(2)}
    tx.update(grads, tx.init(grads), grads, value=3.0)
    assert probe.seen["value"] == 3.0


@pytest.mark.parametrize(
    "state, got",
    [
        (None, "None"),
        ((), "a tuple of 0"),
        ({"w": 1.0}, "a dict with the keys .'w'."),
        (adam(0.1).init({"w": 1.0})[0], r"a ScaleByAdamState\(count, mu, nu\)"),
    ],
)
def test_a_state_of_something_else(state, got):
    before = jax.tree.map(jnp.copy, state)
    with pytest.raises(ValueError, match=f"chain.update: the state must be a tuple of 2 states, .* got .*{got}"):
        sgd(0.1).update({"w": 1.0}, state)
    assert_close(state, before)
    with pytest.raises(ValueError, match=r"named_chain.update: the state must be a dict with the keys \('a',\)"):
        named_chain(("a", scale(1.0))).update({"w": 1.0}, state)


@pytest.mark.parametrize(
    "links, error, message",
    [
        ([("a", scale(1.0)), ("a", scale(2.0))], ValueError, r"names must differ, got \('a', 'a'\)"),
        ([scale(1.0)], TypeError, r"argument 0 must be a pair \(name, transformation\), got scale\(1.0\)"),
        ([("a", scale(1.0)), (1, scale(2.0))], TypeError, r"argument 1 must be a pair .* got \(1, scale\(2.0\)\)"),
        ([("a", scale)], TypeError, r"named_chain: 'a' must be a gradient transformation .* call it: scale\(...\)"),
    ],
)
def test_named_chains_that_are_not(links, error, message):
    with pytest.raises(error, match=message):
        named_chain(*links)


def test_leaves_that_are_no_arrays():
    with pytest.raises(TypeError, match=r"updates\['w'\] must be an array, got 'x'"):
        chain(scale(1.0)).update({"w": "x"}, (EmptyState(),))
    with pytest.raises(TypeError, match=r"params\['w'\] must be an array, got 'x'"):
        chain(scale(1.0)).update({"w": 1.0}, (EmptyState(),), {"w": "x"})
