"""Optax's functions on trees: every name, its numbers where Optax is right, float32 sums where it is not."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functional_opt as fo
from functional_opt import MaskedNode, adam, chain, lookahead, masked, params_ema, partition, sgd, tree, tree_utils

from ..conformance.cases import OPTIMIZERS
from ..helpers import assert_close, assert_same_types

RNG = np.random.default_rng(0)
X, Y = (
    {"a": jnp.asarray(RNG.normal(size=(2, 3)), "float32"), "b": [jnp.asarray(RNG.normal(size=4), "float32"), None]}
    for _ in range(2)
)
Z = jax.tree.map(lambda x, y: x + 1j * y, X, Y)
NAMES = [name for name in vars(optax.tree) if not name.startswith("_")]


def names_of(fn):
    return list(inspect.signature(fn).parameters)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there_with_its_arguments(name):
    ours, theirs = getattr(tree, name), getattr(optax.tree, name)
    assert names_of(ours) == names_of(theirs)
    assert getattr(tree_utils, f"tree_{name}") is ours


@pytest.mark.parametrize(
    "name, args",
    [
        ("add", (X, Y)),
        ("add", (X, Y, Z)),
        ("add_scale", (X, 0.3, Y)),
        ("allclose", (X, Y)),
        ("allclose", (X, X)),
        ("batch_shape", (X, (2, 1))),
        ("bias_correction", (X, 0.9, 3)),
        ("cast", (X, "bfloat16")),
        ("cast", (X, None)),
        ("clip", (X, -0.5, None)),
        ("clip", (X, None, 0.5)),
        ("conj", (Z,)),
        ("div", (X, Y)),
        ("full_like", (X, 3.0)),
        ("max", (X,)),
        ("min", (X,)),
        ("mul", (X, Y)),
        ("norm", (Z,)),
        ("norm", (X, 1)),
        ("norm", (X, "inf")),
        ("norm", (X, None, True)),
        ("norm", (X, 1, True)),
        ("norm", (X, jnp.inf, True)),
        ("ones_like", (X, "bfloat16")),
        ("random_like", (jax.random.key(1), X["a"], jax.random.normal)),
        ("real", (Z,)),
        ("scale", (3.0, X)),
        ("size", (X,)),
        ("sub", (X, Y)),
        ("sum", (X,)),
        ("sum", (Z, True)),
        ("update_infinity_moment", (X, Y, 0.9, 0.1)),
        ("update_moment", (X, Y, 0.9, 2)),
        ("update_moment_per_elem_norm", (Z, X, 0.9, 2)),
        ("update_moment_per_elem_norm", (X, Y, 0.9, 4)),
        ("vdot", (Z, X)),
        ("where", (True, X, Y)),
        ("where", (jnp.array(False), X, Y)),
        ("zeros_like", (X,)),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_the_numbers_of_optax(name, args):
    ours, theirs = getattr(tree, name)(*args), getattr(optax.tree, name)(*args)
    assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert_same_types(jax.tree.map(jnp.asarray, ours), jax.tree.map(jnp.asarray, theirs))


def test_random_like_and_keys():
    keys = tree.split_key_like(jax.random.key(0), X)
    assert jax.tree.structure(keys) == jax.tree.structure(X)
    drawn = tree.random_like(jax.random.key(0), X, jax.random.uniform, "bfloat16")
    assert {x.dtype for x in jax.tree.leaves(drawn)} == {jnp.bfloat16.dtype}
    data = tree.unwrap_random_key_data({"key": keys["a"], "x": 1.0})
    assert data["key"].dtype == jnp.uint32 and data["x"] == 1.0


def test_16_bit_sums_are_taken_in_float32():
    """300 leaves of 4096 ones: Optax's bfloat16 norm is 1024, its float16 norm infinite."""
    for dtype in ("bfloat16", "float16"):
        ones = [jnp.ones(4096, dtype)] * 300
        np.testing.assert_allclose(tree.norm(ones), np.sqrt(300 * 4096), rtol=1e-6)
        assert tree.sum(ones) == tree.vdot(ones, ones) == tree.norm(ones, 1) == 300 * 4096
    moment = tree.update_moment(jnp.ones(1, "float16") * 300, jnp.ones(1), 0.5, 2)
    assert moment.dtype == jnp.float32 and moment[0] == 45000.5


def test_the_norm_at_zero_and_of_nothing():
    assert jax.grad(tree.norm)(jnp.zeros(2)).tolist() == [0.0, 0.0]
    assert tree.norm({}) == tree.sum({}) == tree.size({}) == 0 and bool(tree.allclose({}, {}))
    assert tree.max({}) == -np.inf and tree.min({}) == np.inf and tree.norm({}, "inf") == 0
    assert tree.max({"a": jnp.zeros((0,)), "b": 2}) == 2
    assert tree.min({"a": jnp.zeros((0,), "int8"), "b": 10_000}) == 10_000
    assert tree.add_scale({"a": None, "b": 1.0}, 2.0, {"a": 5.0, "b": 3.0}) == {"a": None, "b": 7.0}
    with pytest.raises(ValueError, match="ord must be None, 1, 2 or infinity, got 3"):
        tree.norm(X, 3)


def test_none_in_updates_leaves_the_moment():
    assert tree.update_moment({"a": None}, {"a": 2.0}, 0.9, 2) == {"a": 2.0}
    assert tree.cast_like({"a": None, "b": 1.0}, {"a": 1.0, "b": jnp.bfloat16(1)})["a"] is None


def test_a_norm_has_no_sign():
    moments = [
        tree.update_moment_per_elem_norm(x, jnp.zeros(1), 0.5, 3) for x in (jnp.array([-2.0]), jnp.array([-2j]))
    ]
    assert moments[0] == moments[1] == 4.0


def test_dtypes_of_trees():
    half, single, whole, unsigned = (jnp.ones(1, d) for d in ("bfloat16", "float32", "int32", "uint32"))
    assert tree.dtype([single, single]) == "float32" and tree.dtype({}) == "float32"
    assert tree.dtype([half, single], "lowest") == "bfloat16" and tree.dtype([half, single], "highest") == "float32"
    assert tree.dtype([half, jnp.ones(1, "float16")], "promote") == "float32"
    with pytest.raises(ValueError, match="several dtypes, bfloat16, float32: none is the common one"):
        tree.dtype([half, single])
    with pytest.raises(ValueError, match="several dtypes, bfloat16, float16: none is the highest one"):
        tree.dtype([half, jnp.ones(1, "float16")], "highest")
    with pytest.raises(ValueError, match="mixed_dtype_handler must be None, 'promote', .* got 'any'"):
        tree.dtype([whole, unsigned], "any")


PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
SPECS = {"w": "rows", "b": "all"}
OTHER_SHAPES = (
    *(
        "adafactor",
        "adam_mini",
        "apollo",
        "cocob",
        "dion",
        "galore",
        "lora_rite",
        "muon",
        "muown",
        "nordion2",
        "normuon",
        "novograd",
        "spam-sparse",
    ),
    *("sm3", "psgd_kron", "shampoo", "soap", "kl_shampoo", "kl_soap"),
)
"""Optimizers with slots that have another shape than their params, or a param's place and no array."""


@pytest.mark.parametrize("case", [c for c in OPTIMIZERS if not c.name.startswith(OTHER_SHAPES)], ids=repr)
def test_params_of_every_state(case):
    """Specs stand where there was a leaf of the shape of its param, None where there was something else."""
    tx = case.tx()
    state = tx.init(PARAMS)
    specs = fo.tree_map_params(tx, lambda x, spec: spec, state, SPECS, transform_non_params=lambda x: None)
    kinds = jax.tree.map(lambda x: {(2, 3): "rows", (3,): "all"}.get(jnp.shape(x)), state)
    assert jax.tree.leaves(specs) == jax.tree.leaves(kinds)


@pytest.mark.parametrize("make", [fo.psgd_kron, fo.shampoo, fo.soap, fo.kl_shampoo, fo.kl_soap])
def test_slots_by_axis_are_no_params(make):
    state = make(0.1).init(PARAMS)
    specs = fo.tree_map_params(make(0.1), lambda x, spec: spec, state, SPECS, transform_non_params=lambda x: None)
    assert set(jax.tree.leaves(specs)) == {"rows", "all"} and len(jax.tree.leaves(specs)) % 2 == 0


@pytest.mark.parametrize(
    "tx",
    [
        chain(sgd(0.1), params_ema(0.9)),
        lookahead(adam(0.1), 2, 0.5),
        fo.MultiSteps(adam(0.1), 2),
        fo.apply_if_finite(fo.selective_transform(adam(0.1), freeze_mask={"w": True, "b": False}), 2),
    ],
    ids=["params_ema", "lookahead", "MultiSteps", "selective_transform"],
)
def test_params_through_wrappers(tx):
    state = tx.init(PARAMS)
    doubled = tree.map_params(tx.init, lambda x, w: x + w, state, PARAMS)
    expected = jax.tree.map(lambda x: x + 1 if jnp.shape(x) in ((2, 3), (3,)) else x, state)
    if isinstance(state, tuple) and isinstance(state[-1], fo.ParamsEmaState):
        expected = (expected[0], expected[1]._replace(missing={"w": jnp.float32(2), "b": jnp.float32(2)}))
    assert_close(jax.tree.map(jnp.asarray, doubled), jax.tree.map(jnp.asarray, expected))


def test_what_a_mask_leaves_out():
    tx = partition({"a": adam(0.1), "b": masked(sgd(0.1, 0.9), True)}, {"w": "a", "b": "b"})
    state = tx.init(PARAMS)
    assert fo.tree_map_params(tx, lambda x, spec: spec, state, SPECS).inner_states["a"].inner_state[0].mu == {
        "w": "rows",
        "b": MaskedNode(),
    }
    all_leaves = fo.tree_map_params(
        tx, lambda x, spec: spec, state, SPECS, is_leaf=lambda x: isinstance(x, MaskedNode)
    )
    assert all_leaves.inner_states["a"].inner_state[0].mu == SPECS
