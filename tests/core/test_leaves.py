"""Trees: the map over leaves with its None and dtype rules, norms, casts, and errors that name the leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functional_opt import global_norm
from functional_opt.core.leaves import cast_like, cast_tree_like, full_like, map_leaves, widen, zeros_like, zip_leaves
from functional_opt.core.norms import abs_sq, all_finite, safe_sqrt, sums_of_squares

from ..helpers import assert_close, assert_same_types, structs
from ..strategies import FLOATS, leaves, trees

floats = st.sampled_from(FLOATS)


def accumulate(g, m):
    return g + m, 2 * m


@given(leaves(), floats, floats, floats)
def test_map_leaves_keeps_every_dtype(x, updates_dtype, slot_dtype, params_dtype):
    updates, slot, params = ({"w": jnp.asarray(x, dtype)} for dtype in (updates_dtype, slot_dtype, params_dtype))
    new, new_slot = map_leaves(accumulate, updates, slot)
    assert_same_types((new, new_slot), (updates, slot))
    new, new_slot = map_leaves(accumulate, updates, slot, params=params)
    assert_same_types((new, new_slot), (params, slot))


def test_map_leaves_computes_in_float32():
    seen = []

    def rule(g, m):
        seen.append((g.dtype, m.dtype))
        return g, m

    map_leaves(rule, jnp.ones(2, "bfloat16"), jnp.ones(2, "float16"))
    map_leaves(rule, jnp.ones(2, "complex64"), jnp.ones(2))
    assert seen == [(jnp.float32, jnp.float32), (jnp.complex64, jnp.float32)]


def test_map_leaves_keeps_the_slot_of_no_update():
    updates, slot = {"w": jnp.ones(2), "b": None}, {"w": jnp.ones(2), "b": jnp.full(3, 7.0)}
    new, new_slot = map_leaves(accumulate, updates, slot)
    assert new["b"] is None and new_slot["b"] is slot["b"]
    assert new["w"].tolist() == [2.0, 2.0] and new_slot["w"].tolist() == [2.0, 2.0]


def test_gradient_of_an_integer_is_no_update():
    grads = jax.grad(lambda w: w["x"] * 2.0, allow_int=True)({"x": 1.0, "n": 3})
    assert grads["n"].dtype == jax.dtypes.float0
    new, slot = map_leaves(accumulate, grads, {"x": jnp.ones([]), "n": jnp.ones([])})
    assert new["n"] is None and slot["n"] == 1.0
    assert float(global_norm(grads)) == 2.0 and bool(all_finite(grads))


def test_map_leaves_reads_without_writing():
    new = map_leaves(lambda g, w: g * w, {"w": jnp.ones(2)}, read=({"w": jnp.full(2, 3.0)},))
    assert new["w"].tolist() == [3.0, 3.0]


def test_map_leaves_of_nothing():
    assert map_leaves(lambda g: g, {}) == {}
    assert map_leaves(accumulate, {}, {}) == ({}, {})
    assert map_leaves(lambda g: g, None) is None


@pytest.mark.parametrize(
    "updates, slot, error, message",
    [
        ({"a": {"b": 1.0}}, {"a": {"b": np.ones(2)}}, ValueError, r"updates\['a'\]\['b'\] has shape \(\), but"),
        ({"a": 1.0}, {"a": 1.0, "b": np.ones(2)}, ValueError, r"updates has no leaf at \['b'\]; .* of shape \(2,\)"),
        ({"a": 1.0, "b": 1.0}, {"a": 1.0}, ValueError, r"updates has a leaf at \['b'\], where .* has none"),
        ({"a": 1.0}, {"a": None}, ValueError, r"the optimizer state has no leaf at \['a'\]"),
        ([1.0, 2.0], (1.0, 2.0), ValueError, "updates and the optimizer state have different containers"),
        ({"a": 1}, {"a": 1.0}, TypeError, r"updates\['a'\] has dtype int32; a gradient must be floating"),
        ({"a": "x"}, {"a": 1.0}, TypeError, r"updates\['a'\] must be an array, got 'x' \(str\)"),
    ],
)
def test_map_leaves_names_the_leaf_that_does_not_fit(updates, slot, error, message):
    with pytest.raises(error, match=message):
        map_leaves(accumulate, updates, slot)


def test_a_function_among_the_params_is_to_be_left_out():
    with pytest.raises(TypeError, match=r"params\['f'\] must be an array, .*; leave it out, as by equinox.filter"):
        full_like({"f": jnp.tanh}, 0.0)


def test_zip_leaves_allows_other_shapes_on_request():
    _, rows = zip_leaves(({"w": np.ones(2)}, {"w": np.ones(3)}), ("updates", "params"), same_shape=False)
    assert [np.shape(x) for x in rows[0]] == [(2,), (3,)]


@given(leaves(), floats)
def test_widen_and_narrow_undo_each_other(x, dtype):
    x = jnp.asarray(x, dtype)
    assert widen(x).dtype == jnp.float32
    back = cast_like(widen(x), x)
    assert back.dtype == x.dtype and np.array_equal(back, x)


def test_widen_leaves_others_alone():
    for x in (jnp.ones(2), jnp.ones(2, "complex64"), jnp.ones(2, "int8")):
        assert widen(x) is x
    for x in (1.0, np.ones(2, "float32")):
        assert isinstance(widen(x), jax.Array) and widen(x).dtype == "float32"


@given(trees(), floats)
def test_cast_like(tree, dtype):
    like = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
    assert_same_types(cast_tree_like(jax.tree.map(jnp.asarray, tree), like), like)


def test_cast_like_leaves_other_trees_alone():
    tree = {"w": jnp.ones(2)}
    assert cast_tree_like(tree, {"v": jnp.ones(2, "bfloat16")}) is tree


@pytest.mark.parametrize(
    "dtype, asked, stored, real",
    [
        ("float32", None, "float32", "float32"),
        ("bfloat16", None, "float32", "float32"),
        ("float16", "float16", "float16", "float16"),
        ("float32", "bfloat16", "bfloat16", "bfloat16"),
        ("complex64", None, "complex64", "float32"),
        ("complex64", "bfloat16", "complex64", "bfloat16"),
        ("int32", None, "float32", "float32"),
    ],
)
def test_slots(dtype, asked, stored, real):
    x = {"w": jnp.ones((2, 3), dtype)}
    assert structs(zeros_like(x, asked))["w"] == jax.ShapeDtypeStruct((2, 3), stored)
    assert structs(full_like(x, 0.5, asked, real=True))["w"] == jax.ShapeDtypeStruct((2, 3), real)
    assert_close(full_like(structs(x), 0.5, asked), full_like(x, 0.5, asked))


def test_slots_name_the_leaf_that_is_no_array():
    with pytest.raises(TypeError, match=r"params\['layer'\]\[1\] must be an array, got 'x' \(str\)"):
        zeros_like({"layer": [jnp.ones(2), "x"]})


@given(trees())
def test_global_norm_is_the_norm_of_all_leaves(tree):
    exact = np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in jax.tree.leaves(tree)))
    np.testing.assert_allclose(global_norm(tree), exact, rtol=1e-5, atol=1e-18)


@given(trees(min_size=1))
def test_gradient_of_the_norm_is_the_unit_vector(tree):
    slope = jax.grad(global_norm)(jax.tree.map(jnp.asarray, tree))
    size = float(global_norm(slope))
    assert np.isfinite(size)
    if float(global_norm(tree)) > 1e-3:
        np.testing.assert_allclose(size, 1.0, rtol=1e-4)


def test_norms_skip_none_and_widen():
    tree = {"a": jnp.full(4096, 1.0, "bfloat16"), "b": None, "c": jnp.array([3j, 4.0])}
    assert sums_of_squares(tree).dtype == jnp.float32
    assert sums_of_squares(tree).tolist() == [4096.0, 25.0]
    assert float(global_norm(jnp.full(4, 300.0, "float16"))) == 600.0
    assert float(global_norm({})) == 0.0


def test_abs_sq_is_real():
    assert abs_sq(jnp.array([3 + 4j])).tolist() == [25.0] and abs_sq(jnp.array([3 + 4j])).dtype == jnp.float32
    assert abs_sq(jnp.array([-3.0])).tolist() == [9.0]


def test_safe_sqrt():
    assert safe_sqrt(jnp.array([0.0, 4.0])).tolist() == [0.0, 2.0]
    assert jax.vmap(jax.grad(safe_sqrt))(jnp.array([0.0, 4.0])).tolist() == [0.0, 0.25]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite(bad):
    assert bool(all_finite({"a": jnp.ones(2), "b": None})) and bool(all_finite({}))
    assert not bool(all_finite({"a": jnp.ones(2), "b": jnp.array([1.0, bad])}))


def test_many_leaves_are_mapped_as_few_are():
    """Of 40 leaves the rule is traced once for each shape, also with tracers of all kinds in it."""
    tree = {f"w{i}": jnp.arange(1.0 + i % 3) + i for i in range(40)}
    traced = []

    def step(scale, tree):
        def rule(u, m):
            traced.append(u.shape)
            return scale * u, m + u

        return map_leaves(rule, tree, tree)

    expected = step(2.0, tree)
    assert len(traced) == 40
    assert_close(jax.jit(step)(2.0, tree), expected)
    assert len(traced) == 43
    assert_close(jax.vmap(step, (0, None))(jnp.array([1.0, 2.0]), tree)[0]["w4"][1], expected[0]["w4"])
    slope = jax.jit(jax.grad(lambda scale: step(scale, tree)[0]["w4"].sum()))(2.0)
    assert_close(slope, tree["w4"].sum())


def test_sums_of_squares_of_many_leaves_stand_in_their_order():
    rng = np.random.default_rng(0)
    shapes = [[(3,), (2, 3), (), (150, 150), (3,)][i % 5] for i in range(40)]
    tree = [
        jnp.asarray(rng.normal(size=shape), "float16" if i % 7 == 0 else "float32") for i, shape in enumerate(shapes)
    ]
    expected = np.array([np.sum(np.asarray(x, np.float64) ** 2) for x in tree], np.float32)
    assert_close(sums_of_squares(tree), expected, rtol=1e-5)
    assert_close(jax.grad(lambda x: global_norm(x))(tree)[1], tree[1] / np.sqrt(expected.sum()), rtol=1e-5)
