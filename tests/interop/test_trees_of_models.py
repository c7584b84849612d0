"""Trees of Flax, Equinox and Haiku: who goes where in them, by which path, and that a module is a tree."""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import functional_opt as fo

from ..helpers import assert_close


class Block(nn.Module):
    """Attention, a norm and a layer, to be scanned over."""

    @nn.compact
    def __call__(self, x, _=None):
        x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(2)(x, x))
        return nn.Dense(6)(nn.Dense(4)(x)), None


class Model(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(9, 6, name="tokens")(tokens)
        x, _ = Block(name="first")(x)
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scan(name="layers")(x, None)
        x = nn.Conv(6, (3,), name="mix")(x)
        x = nn.BatchNorm(True)(nn.DenseGeneral((2, 4), name="fused")(x).reshape(*x.shape[:-1], 8))
        return nn.Dense(9, name="lm_head")(x)


@functools.cache
def linen_shapes():
    return jax.eval_shape(Model().init, jax.random.key(0), jnp.ones((1, 5), int))["params"]


def nnx_attention():
    return nnx.MultiHeadAttention(num_heads=2, in_features=8, rngs=nnx.Rngs(0), decode=False)


def routes(tx, params):
    return {route.path: route for route in fo.describe(tx, params).routes}


def filled(shapes, seed=0):
    leaves, treedef = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return treedef.unflatten([jnp.asarray(rng.standard_normal(x.shape), "float32") for x in leaves])


def test_who_goes_where_in_a_linen_model():
    found = routes(fo.muon(0.1), linen_shapes())
    muon = {path: route.why[0] for path, route in found.items() if route.labels == ("muon",)}
    attention = {f"{name}/kernel": "0 | 1, 2" for name in ("query", "key", "value")} | {"out/kernel": "0, 1 | 2"}
    expected = {f"first/MultiHeadDotProductAttention_0/{name}": axes for name, axes in attention.items()}
    stacked = {f"{name}/kernel": "1 | 2, 3" for name in ("query", "key", "value")} | {"out/kernel": "1, 2 | 3"}
    expected |= {f"layers/MultiHeadDotProductAttention_0/{name}": axes for name, axes in stacked.items()}
    expected |= {f"layers/Dense_{i}/kernel": "1 | 2" for i in range(2)}
    expected |= {"fused/kernel": "0 | 1, 2"}
    for path, axes in expected.items():
        rows, columns = axes.split(" | ")
        assert muon.pop(path).endswith(f"rows {rows}, columns {columns}"), path
    assert sorted(muon) == ["first/Dense_0/kernel", "first/Dense_1/kernel"]
    assert found["tokens/embedding"].why == ("embedding: path '*[eE]mbed*/**'",)
    assert found["mix/kernel"].labels == ("adam",) and found["layers/LayerNorm_0/scale"].labels == ("adam",)
    assert found["layers/MultiHeadDotProductAttention_0/query/bias"].shape == (3, 2, 3)
    assert (
        "mix/kernel (3, 6, 6): a stack of matrices, a convolution, or"
        in fo.describe(fo.muon(0.1), linen_shapes()).notes[0]
    )


@pytest.mark.parametrize("make", [fo.normuon, fo.dion, fo.scion])
def test_its_kin_take_the_same_leaves(make):
    own, muon = routes(make(0.1), linen_shapes()), routes(fo.muon(0.1), linen_shapes())
    label = "spectral" if make is fo.scion else make.__name__
    assert [p for p, r in own.items() if r.labels == (label,)] == [
        p for p, r in muon.items() if r.labels == ("muon",)
    ]


def as_matrix(path, x):
    """The matrix, or the stack of matrices, that a leaf of the attention is."""
    heads = x.ndim - 3
    if "kernel" in path and "out" in path:
        return x.reshape(*x.shape[:heads], x.shape[heads] * x.shape[heads + 1], -1)
    return x.reshape(*x.shape[: heads + 1], -1) if "kernel" in path else x


@pytest.mark.parametrize(
    "make",
    [
        lambda **args: fo.muon(0.1, **args),
        lambda **args: fo.muon(0.1, adaptive=True, consistent_rms=0.2, **args),
        lambda **args: fo.normuon(0.1, **args),
        lambda **args: fo.dion(0.1, rank_fraction=0.5, **args),
        lambda **args: fo.scion(0.1, **args),
    ],
)
@pytest.mark.parametrize("layers", [(), (3,)])
def test_a_step_on_attention_is_the_step_on_its_matrices(make, layers):
    """Scanned layers go along, told by the axes of their biases."""
    shapes = {name: {"kernel": (8, 2, 3), "bias": (2, 3)} for name in ("query", "key", "value")}
    shapes |= {"out": {"kernel": (2, 3, 8), "bias": (8,)}}
    stacked = jax.tree.map(lambda s: jnp.zeros(layers + s), shapes, is_leaf=lambda s: isinstance(s, tuple))
    params = {"attention": filled(stacked)}
    matrices = jax.tree_util.tree_map_with_path(lambda p, x: as_matrix(jax.tree_util.keystr(p), x), params)
    tx, flat = make(), make()
    state, flat_state = tx.init(params), flat.init(matrices)
    for seed in (1, 2):
        grads = filled(params, seed)
        flat_grads = jax.tree.map(lambda g, m: g.reshape(m.shape), grads, matrices)
        u, state = tx.update(grads, state, params)
        expected, flat_state = flat.update(flat_grads, flat_state, matrices)
    for x, y in zip(jax.tree.leaves(u), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x.reshape(y.shape), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [fo.muon, fo.normuon, fo.dion, fo.scion])
def test_matrices_stored_the_other_way_round(make):
    model = eqx.nn.MLP(3, 5, 4, 1, use_bias=False, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    turned = jax.tree.map(jnp.transpose, params)
    tx, flat = make(0.1, matrix_layout="out_in"), make(0.1, matrix_layout="in_out")
    u, _ = tx.update(params, tx.init(params), params)
    expected, _ = flat.update(turned, flat.init(turned), turned)
    assert_close(jax.tree.map(jnp.transpose, u), expected, rtol=1e-5, atol=1e-6)
    assert fo.describe(tx, model).notes == fo.describe(flat, model).notes == ()
    (note,) = fo.describe(make(0.1), model).notes
    assert note.startswith("layers/0/weight (4, 3), layers/1/weight (5, 4): read as (inputs, outputs)")


def test_axes_that_cannot_be_read_are_said_by_rules():
    params = {"mix": {"kernel": jnp.ones((3, 4, 5))}, "dense": {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)}}
    (note,) = fo.describe(fo.muon(0.1), params).notes
    assert '{"mix/kernel": MuonDimensionNumbers(1, 2), "**": "auto"}' in note
    numbers = {"mix/kernel": fo.MuonDimensionNumbers(1, 2), "**": "auto"}
    for tx in (
        fo.muon(0.1, muon_weight_dimension_numbers=numbers),
        fo.normuon(0.1, weight_dimension_numbers=numbers),
        fo.dion(0.1, weight_dimension_numbers=numbers),
    ):
        assert [r.labels[0] != "adam" for r in fo.describe(tx, params).routes] == [False, True, True]
        assert fo.describe(tx, params).notes == () and fo.from_config(fo.to_config(tx)) == tx
        tx.update(params, tx.init(params), params)
    only = fo.muon(0.1, muon_weight_dimension_numbers={"*/kernel": None, "mix/*": fo.MuonDimensionNumbers(1, 2)})
    assert set(jax.tree.leaves(only.param_labels(params))) == {"adam"}
    with pytest.raises(ValueError, match=r"rule 'mixer/\*' matches no leaf; the nearest paths are mix/kernel"):
        fo.muon(0.1, muon_weight_dimension_numbers={"mixer/*": None}).init(params)
    with pytest.raises(TypeError, match=r"\['\*/kernel'\] must hold MuonDimensionNumbers or None, got 3"):
        fo.muon(0.1, muon_weight_dimension_numbers={"*/kernel": 3})


@pytest.mark.parametrize(
    "shapes, to_muon",
    [
        ({"query": {"kernel": (8, 2, 4), "bias": (2, 4)}}, ["query/kernel"]),
        ({"blocks": {"w": (3, 4, 5), "b": (3, 5)}}, ["blocks/w"]),
        ({"blocks": {"w": (3, 4, 5)}}, ["blocks/w"]),
        ({"layers": {"0": {"w": (4, 4)}, "1": {"w": (4, 4)}}}, ["layers/0/w", "layers/1/w"]),
        ({"layers": {"up": {"w": (4, 4)}, "down": {"w": (4, 4)}}}, ["layers/down/w", "layers/up/w"]),
        ({"conv": {"kernel": (3, 4, 5), "bias": (5,)}}, []),
        ({"mix": {"kernel": (3, 4, 5), "bias": (5,)}}, []),
        ({"lora": {"a": (4, 2), "b": (2, 4)}}, ["lora/a", "lora/b"]),
        ({"dense": {"w": (4, 2), "b": (2, 4)}}, ["dense/w"]),
        ({"norm": {"weight": (3, 4)}, "cls": (1, 1, 8), "scale": (3, 4)}, []),
        ({"attn": {"wq": (8, 2, 4), "wo": (2, 4, 8), "bq": (2, 4)}}, ["attn/wo", "attn/wq"]),
        ({"ScanDense_0": {"q_proj": {"kernel": (3, 8, 8), "bias": (3, 8)}}}, ["ScanDense_0/q_proj/kernel"]),
    ],
)
def test_what_path_and_neighbours_say(shapes, to_muon):
    params = jax.tree.map(jnp.ones, shapes, is_leaf=lambda s: isinstance(s, tuple))
    assert [path for path, route in routes(fo.muon(0.1), params).items() if route.labels == ("muon",)] == to_muon
    tx = fo.muon(0.1)
    tx.update(params, tx.init(params), params)


def boxed():
    """Trees with the same leaves at the same paths: plain, of nnx in two forms, in linen's two boxes."""
    model = nnx.Sequential(nnx_attention())
    state = nnx.state(model, nnx.Param)
    plain = nnx.to_pure_dict(state)

    def box(make):
        return jax.tree.map(lambda x: make(x, names=(None,) * x.ndim), plain)

    return {
        "plain": plain,
        "state": state,
        "module": nnx.merge(nnx.graphdef(model), state),
        "partitioned": box(nn.Partitioned),
        "logical": box(nn.LogicallyPartitioned),
    }


@pytest.mark.parametrize("kind", ["plain", "state", "module", "partitioned", "logical"])
def test_boxes_are_no_part_of_a_path(kind):
    params, plain = boxed()[kind], boxed()["plain"]
    assert [r[:3] for r in routes(fo.muon(0.1), params).values()] == [
        r[:3] for r in routes(fo.muon(0.1), plain).values()
    ]
    masks = {"*/bias": False}, fo.PathRules({"/layers/0/value/kernel": True, "**": False})
    txs = [fo.masked(fo.scale(-1.0), mask) for mask in masks]
    txs += [fo.groups(fo.scale(-1.0), {"value/*": "frozen", "query/bias": {"step_size": 2.0}})]
    txs += [fo.muon(0.1, muon_weight_dimension_numbers={"*/query/kernel": fo.MuonDimensionNumbers(0, (1, 2))})]
    txs += [fo.scale_by_apollo(rank=2)]
    for tx in txs:
        u, _ = tx.update(params, tx.init(params), params)
        expected, _ = tx.update(plain, tx.init(plain), plain)
        assert jax.tree.structure(u) == jax.tree.structure(params)
        for x, y in zip(jax.tree.leaves(u), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(x, y)
    with pytest.raises(ValueError, match="nearest paths are layers/0/value/bias"):
        fo.masked(fo.scale(1.0), {"layers/*/value": False}).init(params)


def test_a_param_may_be_called_value():
    params = {"value": jnp.ones(2), "scale": {"value": jnp.ones(2), "raw_value": jnp.ones(2)}}
    assert fo.PathRules({"/value": 1, "scale/value": 2, "*/raw_value": 3}).resolve(params) == {
        "value": 1,
        "scale": {"value": 2, "raw_value": 3},
    }


def test_haikus_modules_are_parts_of_a_path():
    params = hk.transform(lambda x: hk.nets.MLP([3, 2])(x)).init(jax.random.key(0), jnp.ones((1, 2)))
    labels = fo.PathRules({"linear_0/*": 0, "mlp/**/w": 1, "**": 2}).resolve(params)
    assert labels == {"mlp/~/linear_0": {"b": 0, "w": 0}, "mlp/~/linear_1": {"b": 2, "w": 1}}


def test_the_mask_that_explain_recommends_works():
    for params in (boxed()["state"], {"bias": jnp.ones(2), "w": jnp.ones((2, 2))}, [jnp.ones(2), jnp.ones((2, 2))]):
        notes = fo.explain(fo.adamw(0.1, weight_decay=0.1), params).notes
        (note,) = (note for note in notes if note.rule == "decay_of_vectors")
        mask = eval(note.message.split("mask=")[1])
        tx = fo.adamw(0.1, weight_decay=0.1, mask=mask)
        rules = [n.rule for n in fo.explain(tx, params).notes]
        assert "decay_of_vectors" not in rules and "mask_of_nothing" not in rules


CALLABLE = eqx.nn.MLP(2, 2, 3, 1, key=jax.random.key(0))
ARRAYS = eqx.filter(CALLABLE, eqx.is_inexact_array)
GRADS = jax.tree.map(jnp.ones_like, ARRAYS)
IS_MATRIX = jax.tree.map(lambda x: np.ndim(x) > 1, ARRAYS)
OF_ALL = jax.tree.map(lambda x: hasattr(x, "ndim") and x.ndim > 1, CALLABLE)


@pytest.mark.parametrize("mask", [IS_MATRIX, OF_ALL], ids=["of arrays", "of all"])
@pytest.mark.parametrize("by_function", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda mask: fo.masked(fo.scale(-1.0), mask),
        fo.freeze,
        lambda mask: fo.selective_transform(fo.scale(-1.0), freeze_mask=mask),
        lambda mask: fo.adamw(0.1, weight_decay=0.1, mask=mask),
        lambda mask: fo.muon(0.1, muon_mask=mask, weight_decay=0.1, weight_decay_mask=mask),
        lambda mask: fo.normuon(0.1, matrix_mask=mask),
        lambda mask: fo.dion(0.1, matrix_mask=mask),
    ],
)
def test_modules_are_trees_as_masks(make, mask, by_function):
    """The same as by a function of each leaf, though a module can be called."""
    tx = make((lambda params: mask) if by_function else mask)
    peer = make(lambda params: jax.tree.map(lambda x: x.ndim > 1, params))
    for params in (ARRAYS, CALLABLE):
        u, _ = tx.update(GRADS, tx.init(ARRAYS), params)
        assert_close(u, peer.update(GRADS, peer.init(ARRAYS), ARRAYS)[0])


@pytest.mark.parametrize("by_function", [False, True])
def test_modules_are_trees_as_labels_and_numbers(by_function):
    of = (lambda tree: lambda params: tree) if by_function else (lambda tree: tree)
    labels = jax.tree.map(lambda yes: "a" if yes else "b", IS_MATRIX)
    numbers = jax.tree.map(lambda yes: fo.MuonDimensionNumbers(1, 0) if yes else None, IS_MATRIX)
    galore = jax.tree.map(lambda yes: fo.GaLoreDimensionNumbers(1, 0) if yes else None, IS_MATRIX)
    norms = jax.tree.map(lambda yes: "spectral" if yes else "rms", IS_MATRIX)
    for tx in (
        fo.partition({"a": fo.scale(2.0), "b": fo.scale(0.5)}, of(labels)),
        fo.muon(0.1, muon_weight_dimension_numbers=of(numbers)),
        fo.scale_by_galore(1, weight_dimension_numbers=of(galore)),
        fo.scion(0.1, norms=of(norms)),
    ):
        u, _ = tx.update(GRADS, tx.init(ARRAYS), CALLABLE)
        assert jax.tree.structure(u) == jax.tree.structure(GRADS)
    assert fo.muon(0.1, muon_weight_dimension_numbers=of(numbers)).param_labels(ARRAYS).layers[0].weight == "muon"


def test_only_bare_functions_are_called():
    def of_rank(params, axes):
        return jax.tree.map(lambda x: x.ndim > axes, params)

    expected = fo.masked(fo.scale(-1.0), IS_MATRIX).update(GRADS, fo.MaskedState(fo.EmptyState()), ARRAYS)[0]
    for mask in (
        functools.partial(of_rank, axes=1),
        jax.tree_util.Partial(of_rank, axes=1),
        eqx.filter_jit(lambda params: IS_MATRIX),
        lambda params: fo.PathRules({"weight": True, "**": False}),
    ):
        tx = fo.masked(fo.scale(-1.0), mask)
        assert_close(tx.update(GRADS, tx.init(ARRAYS), ARRAYS)[0], expected)
    with pytest.raises(TypeError, match="mask must be True or False"):
        fo.masked(fo.scale(1.0), lambda params: of_rank).init(ARRAYS)
    labelled = fo.partition({"muon": fo.scale(2.0), "adam": fo.scale(3.0)}, fo.muon_labels())
    assert labelled.param_labels(ARRAYS).layers[0].weight == "muon"
