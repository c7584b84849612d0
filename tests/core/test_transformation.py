"""The core type: pairs of functions, foreign transformations, counts, and adding the updates."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given

from functional_opt import (
    EmptyState,
    GradientTransformation,
    adam,
    apply_updates,
    chain,
    scale,
    trace,
    transformation,
)
from functional_opt.core.transformation import increment, zero_count

from ..helpers import INT32_MAX, assert_close, assert_same_types
from ..strategies import FLOATS, trees


def init_count(params):
    return {"n": jnp.zeros([], "bfloat16")}


def times_value(updates, state, params=None, *, value=1.0):
    return jax.tree.map(lambda g: g * value, updates), {"n": state["n"] + jnp.float32(1)}


def test_init_and_update_unpack():
    init, update = tx = scale(-2.0)
    assert update({"w": 1.0}, init({"w": 0.0}))[0]["w"] == -2.0
    assert tx[1]({"w": 1.0}, tx[0](None))[0]["w"] == -2.0


def test_a_pair_of_functions():
    tx = GradientTransformation(init_count, times_value)
    assert repr(tx) == "GradientTransformation(init_count, times_value)" and eval(repr(tx)) == tx
    assert isinstance(tx, GradientTransformation) and hash(tx) == hash(eval(repr(tx)))


def test_a_pair_gets_the_extra_arguments_it_takes():
    tx = GradientTransformation(init_count, times_value)
    assert tx.update(1.0, tx.init(None), value=3.0, other="unused")[0] == 3.0
    seen = {}
    greedy = GradientTransformation(lambda p: (), lambda g, s, p=None, **extra: (seen.update(extra) or g, s))
    greedy.update(1.0, (), value=3.0, other=4)
    assert seen == {"value": 3.0, "other": 4}


def test_a_pair_of_functions_without_params():
    tx = GradientTransformation(lambda p: (), lambda g, s, *, value: (g * value, s))
    assert tx.update(1.0, (), None, value=3.0, other="unused")[0] == 3.0


def test_a_pairs_state_keeps_its_dtypes():
    tx = GradientTransformation(init_count, times_value)
    state = tx.init(None)
    assert_same_types(tx.update(1.0, state)[1], state)
    params, grads = {"w": jnp.ones(2, "bfloat16")}, {"w": jnp.ones(2, "float32")}
    foreign = chain(optax.adam(0.1))  # alone it turns bfloat16 moments into float32 ones
    state = foreign.init(params)
    assert_same_types(foreign.update(grads, state, params)[1], state)


def test_any_object_with_init_and_update_will_do():
    foreign = types.SimpleNamespace(init=lambda p: (), update=lambda g, s, p=None: (jax.tree.map(jnp.negative, g), s))
    tx = chain(foreign, scale(2.0))
    assert tx.update({"w": jnp.ones([])}, tx.init({"w": 1.0}))[0] == {"w": -2.0}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: chain(adam), r"chain: argument 0 must be a gradient transformation .* call it: adam\(...\)"),
        (lambda: chain(scale(1.0), trace), r"chain: argument 1 must be .* call it: trace\(...\)"),
        (
            lambda: chain([scale(1.0)]),
            r"chain: argument 0 must be a gradient transformation .* got \[scale\(1.0\)\]; .*chain\(\*transf",
        ),
        (lambda: chain(None), "chain: argument 0 must be a gradient transformation .* got None"),
        (lambda: GradientTransformation(1, times_value), "init must be a function, got 1"),
        (lambda: GradientTransformation(init_count, None), "update must be a function, got None"),
    ],
)
def test_what_is_no_transformation(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_subclasses_are_values():
    @transformation
    class shift(GradientTransformation):
        by: float

        def init(self, params):
            return EmptyState()

        def update(self, updates, state, params=None, **extra):
            return jax.tree.map(lambda u: u + self.by, updates), state

    assert repr(shift(1.0)) == "shift(1.0)" and shift(1.0) == shift(1.0) and jax.tree.leaves(shift(1.0)) == [1.0]
    assert chain(shift(1.0), scale(2.0)).update({"w": 1.0}, (EmptyState(), EmptyState()))[0]["w"] == 4.0


def test_counts():
    assert zero_count().dtype == jnp.int32 and zero_count().shape == ()
    assert int(increment(jnp.int32(INT32_MAX - 1))) == INT32_MAX == int(increment(jnp.int32(INT32_MAX)))
    assert increment(zero_count()).dtype == jnp.int32


@given(trees())
def test_apply_updates_adds_in_the_dtype_of_the_params(tree):
    updates = jax.tree.map(lambda x: jnp.asarray(x, "float32"), tree)
    for dtype in FLOATS:
        params = jax.tree.map(lambda x: jnp.asarray(x / 2, dtype), tree)  # noqa: B023
        new = apply_updates(params, updates)
        assert_same_types(new, params)
        exact = jax.tree.map(
            lambda p, u: (np.asarray(p, np.float32) + np.asarray(u)).astype(p.dtype), params, updates
        )
        assert_close(new, exact)


def test_apply_updates_rounds_once():
    """1 + (2⁻⁸ + 2⁻¹⁷) is just above the middle of two bfloat16 numbers; rounding the update first would miss it."""
    new = apply_updates(jnp.ones([], "bfloat16"), jnp.float32(2**-8 + 2**-17))
    assert new.dtype == jnp.bfloat16 and float(new) == 1 + 2**-7


def test_apply_updates_leaves_none_alone():
    params = {"w": jnp.ones(2), "b": jnp.ones(3), "n": jnp.arange(2), "gone": None}
    new = apply_updates(params, {"w": jnp.ones(2), "b": None, "n": None, "gone": None})
    assert new["w"].tolist() == [2.0, 2.0] and new["b"] is params["b"] and new["n"] is params["n"]
    assert new["gone"] is None


@pytest.mark.parametrize(
    "updates, message",
    [
        ({"w": np.ones(2)}, r"updates has no leaf at \['b'\]; params has one of shape \(3,\)"),
        ({"w": np.ones(2), "b": np.ones(3), "c": 1.0}, r"updates has a leaf at \['c'\], where params has none"),
        ({"w": np.ones(2), "b": np.ones((3, 1))}, r"updates\['b'\] has shape \(3, 1\), but params has \(3,\) there"),
        (
            {"w": np.ones(2), "c": np.ones(3)},
            r"no leaf at \['b'\]; .*; updates has a leaf at \['c'\], where params has none",
        ),
        (({"w": np.ones(2), "b": np.ones(3)}, ()), r"updates has no leaf at \['b'\].* pass the first of the two"),
    ],
)
def test_apply_updates_names_the_leaf(updates, message):
    with pytest.raises(ValueError, match=message):
        apply_updates({"w": jnp.ones(2), "b": jnp.ones(3)}, updates)


def test_a_complex_update_of_a_real_leaf_is_refused():
    with pytest.raises(TypeError, match=r"updates\['w'\] is complex, but params has float32 there"):
        apply_updates({"w": jnp.ones(2)}, {"w": jnp.ones(2) * 1j})


def test_a_tree_for_a_leaf_is_refused():
    with pytest.raises(ValueError, match="params has a dict at the root, where updates has one of shape"):
        apply_updates({"w": jnp.ones(2)}, jnp.ones(2))
