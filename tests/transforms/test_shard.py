"""shard: each device has its part of the state and does its part of the work; the numbers and placements stay."""

import functools
import math
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import functional_opt as fo

from ..conformance.cases import CASES
from ..conformance.test_contracts import specs
from ..helpers import compiled

P = PartitionSpec
SHAPES = {"bias": (32,), "kernel": (64, 48), "layers": (3, 16, 64), "odd": (33, 35)}
LAYOUTS = {
    "replicated": {},
    "FSDP": {"kernel": P("data"), "layers": P(None, "data")},
    "TP": {"kernel": P("model"), "layers": P(None, None, "model")},
    "2-D": {"kernel": P("data", "model"), "layers": P(None, "data", "model")},
}
KINDS = [AxisType.Auto, AxisType.Explicit]
ADAMW = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(1e-2, weight_decay=0.1))


def mesh_of(kind, shape=(2, 2)):
    return jax.make_mesh(shape, ("data", "model"), axis_types=(kind,) * 2)


def tree(seed, mesh, layout):
    rng = np.random.default_rng(seed)
    specs = {name: LAYOUTS[layout].get(name, P()) for name in SHAPES}
    return {
        name: jax.device_put(rng.normal(size=shape).astype("float32"), NamedSharding(mesh, specs[name]))
        for name, shape in SHAPES.items()
    }


def bytes_here(tree):
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def collectives(fn, *args):
    """The elements that each device gets from each kind of collective operation of the compiled program."""
    text, sizes = jax.jit(fn).lower(*args).compile().as_text(), {}
    for shape, kind in re.findall(
        r" = f32\[([\d,]*)\]\S* (all-gather|all-to-all|all-reduce|collective-permute)\(", text
    ):
        sizes[kind] = sizes.get(kind, 0) + math.prod(map(int, filter(None, shape.split(","))))
    return sizes


def same_placement(tree, like):
    return all(
        x.sharding.is_equivalent_to(y.sharding, x.ndim) and x.sharding.memory_kind == y.sharding.memory_kind
        for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_numbers_of_the_whole(layout, kind):
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        params, grads = tree(0, mesh, layout), tree(1, mesh, layout)
        results = []
        for tx in (ADAMW, fo.shard(ADAMW)):
            state, update = tx.init(params), jax.jit(tx.update)
            updates, new = update(grads, state, params)
            updates, new = update(grads, new, params)
            assert same_placement((updates, new), (params, state))
            results.append((updates, new))
    exact = kind == AxisType.Auto  # else the norm is a sum of the devices' sums
    for x, y in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(x, y, rtol=0 if exact else 1e-6, atol=0 if exact else 2e-8)


def test_bytes_and_what_is_sent():
    mesh = mesh_of(AxisType.Auto, (4, 1))
    with jax.set_mesh(mesh):
        params, grads = tree(0, mesh, "replicated"), tree(1, mesh, "replicated")
        tx = fo.shard(fo.adamw(1e-3))
        state = tx.init(params)
        large = 64 * 48 + 3 * 16 * 64
        assert bytes_here(state) == 2 * 4 * (large // 4 + 32 + 33 * 35) + 4
        compiled = jax.jit(tx.init).lower(params).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < bytes_here(state)
        assert same_placement(jax.jit(tx.init)(params), state)
        assert collectives(tx.update, grads, state, params) == {"all-gather": large}


def test_init_in_jit_without_a_current_mesh():
    mesh, tx = mesh_of(AxisType.Auto), fo.shard(fo.adam(0.1))
    state = jax.jit(tx.init)(tree(0, mesh, "replicated"))
    assert state[0].mu["kernel"].sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 2)


def test_one_compilation():
    mesh = mesh_of(AxisType.Auto)
    with jax.set_mesh(mesh):
        tx, params = fo.shard(ADAMW), tree(0, mesh, "TP")

        @jax.jit
        def step(params, state):
            updates, state = tx.update(params, state, params)
            return fo.apply_updates(params, updates), state

        before = len(compiled)
        new = step(*step(params, tx.init(params)))
        assert same_placement(new, (params, tx.init(params)))
        assert sum("step" in name for name in compiled[before:]) == 1


ON_A_MESH = AbstractMesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
PLACED = {
    "dense": {"bias": ((32,), P("model")), "kernel": ((64, 32), P("data", "model"))},
    "layers": ((4, 32, 16), P(None, None, "model")),
    "out": ((32, 32), P("model")),
    "scale": ((), P()),
}


@pytest.mark.parametrize("case", [c for c in CASES if c.takes_other_params], ids=repr)
def test_each_keeps_placements(case):
    """Explicit axes carry placements in types, so that tracing shows them."""
    shape = lambda x: jax.ShapeDtypeStruct(x[0], "float32", sharding=NamedSharding(ON_A_MESH, x[1]))  # noqa: E731
    params = jax.tree.map(shape, PLACED, is_leaf=lambda x: isinstance(x, tuple))
    tx = fo.shard(case.tx(), min_size=64)
    with jax.sharding.use_abstract_mesh(ON_A_MESH):
        state = jax.eval_shape(tx.init, params)
        updates, new = jax.eval_shape(tx.update, params, state, params)
    assert specs(new) == specs(state)
    assert specs(updates) == specs(params)
    for x in jax.tree.leaves(state):
        if x.size >= 64 and jnp.issubdtype(x.dtype, jnp.number) and any(n % 4 == 0 for n in x.shape):
            assert "data" in str(x.sharding), x


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_memory_of_the_host(kind):
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        params, results = tree(0, mesh, "replicated"), []
        for tx in (fo.shard(ADAMW), fo.shard(ADAMW, memory_kind="pinned_host")):
            state = tx.init(params)
            updates, new = jax.jit(tx.update)(params, state, params)
            assert same_placement(new, state)
            results.append(updates)
        assert {x.sharding.memory_kind for x in jax.tree.leaves(state) if x.size >= 1024} == {"pinned_host"}
        assert fo.state_shardings(tx, params)[1][0].mu["kernel"].memory_kind == "pinned_host"
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_rules_and_several_axes():
    mesh = mesh_of(AxisType.Auto)
    with jax.set_mesh(mesh):
        params = tree(0, mesh, "replicated")
        rules = {"kernel": 1, "layers": "whole"}
        mu = fo.shard(fo.adam(0.1), ("data", "model"), rules=rules).init(params)[0].mu
        assert mu["kernel"].sharding.spec == P(None, ("data", "model"))
        assert mu["layers"].sharding.is_fully_replicated
        mu = fo.shard(fo.adam(0.1), ("data", "model")).init(params)[0].mu
        assert mu["layers"].sharding.spec == P(None, ("data", "model"))
        with pytest.raises(ValueError, match=r"rules: axis 0 of odd, of shape \(33, 35\), cannot be split over 2"):
            fo.shard(fo.adam(0.1), rules={"odd": 0}).init(params)
        with pytest.raises(ValueError, match="matches no leaf"):
            fo.shard(fo.adam(0.1), rules={"kernels": 0}).init(params)


def test_it_is_data():
    tx = fo.shard(fo.adam(0.1), ("data", "model"), 64, "pinned_host", {"**/kernel": 1, "**/bias": "whole"})
    assert fo.from_config(fo.to_config(tx)) == pickle.loads(pickle.dumps(tx)) == eval(repr(tx), vars(fo)) == tx


def test_what_cannot_be_split_is_said():
    mesh = mesh_of(AxisType.Auto)
    params = tree(0, mesh, "replicated")
    notes = fo.describe(fo.shard(fo.adam(0.1)), params).notes
    assert len(notes) == 1 and "odd, of shape (33, 35), can be split over 2 devices" in notes[0]


def test_sweeps_and_hypergradients():
    mesh = mesh_of(AxisType.Auto)
    with jax.set_mesh(mesh):
        params = tree(0, mesh, "replicated")

        def moved(rate, wrap):
            tx = wrap(fo.adam(rate))
            updates, _ = tx.update(params, tx.init(params), params)
            return updates["kernel"].sum()

        rates = jnp.array([0.1, 0.2])
        swept, slopes = [], []
        for wrap in (fo.shard, lambda tx: tx):
            swept.append(jax.jit(jax.vmap(functools.partial(moved, wrap=wrap)))(rates))
            slopes.append(jax.jit(jax.grad(functools.partial(moved, wrap=wrap)))(0.1))
        np.testing.assert_allclose(*swept, rtol=1e-5)
        np.testing.assert_allclose(*slopes, rtol=1e-5)


def test_errors():
    mesh, tx = mesh_of(AxisType.Auto), fo.shard(fo.adam(0.1))
    w = {"w": jnp.zeros((64, 64))}
    with pytest.raises(ValueError, match=r"shard\(axis='data'\) needs a mesh"):
        tx.init(w)
    with jax.set_mesh(mesh):
        with pytest.raises(ValueError, match="has no axis 'rows'; its axes are data, model"):
            fo.shard(fo.adam(0.1), "rows").init(w)
    for wrong in ("", 3, ("data", "data"), ()):
        with pytest.raises(TypeError, match="axis must be the name of a mesh axis"):
            fo.shard(fo.adam(0.1), wrong)
    for wrong in ({"*": True}, {"*": None}, {"*": "no"}, [1]):
        with pytest.raises(TypeError, match="rules"):
            fo.shard(fo.adam(0.1), rules=wrong)

    def manually(w):
        return tx.update(w, fo.adam(0.1).init(w))[0]

    manual = jax.shard_map(manually, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    with pytest.raises(ValueError, match="shard_map over 'data'"):
        jax.jit(manual)(w)


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_without_gradients(kind):
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        params, results = {**tree(0, mesh, "FSDP"), "none": None}, []
        grads = {**tree(1, mesh, "FSDP"), "kernel": None, "none": None}
        for tx in (fo.adamw(0.1), fo.shard(fo.adamw(0.1))):
            results.append(jax.jit(tx.update)(grads, tx.init(params), params))
    assert results[1][0]["kernel"] is None
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_vector_is_split(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    params = {"a": jnp.arange(7.0), "b": jnp.ones((3, 5))}
    alone, tx = fo.flatten(fo.adam(0.1)), fo.shard(fo.flatten(fo.adam(0.1), multiple_of=8), min_size=1)
    expected, _ = alone.update(params, alone.init(params), params)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, NamedSharding(mesh, P()))
        state = tx.init(placed)
        updates, state = jax.jit(tx.update)(placed, state, placed)
    assert state[0].mu.shape == (24,) and state[0].mu.addressable_shards[0].data.shape == (6,)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    for name, x in updates.items():
        np.testing.assert_allclose(x, expected[name], rtol=1e-6)
