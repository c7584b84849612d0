"""state_shardings: every slot gets a sharding that fits it, derived from that of its leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import functional_opt as fo

from ..conformance.cases import CASES
from ..helpers import compiled

P = PartitionSpec
MESH = AbstractMesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
LAYOUT = {
    "dense": {"bias": ((32,), P("model")), "kernel": ((64, 32), P("data", "model"))},
    "layers": ((4, 32, 16), P(None, "data", "model")),
    "scale": ((), P()),
}


def placed(mesh, make=jax.ShapeDtypeStruct):
    def leaf(x):
        shape, spec = x
        return make(shape, "float32", sharding=NamedSharding(mesh, spec))

    return jax.tree.map(leaf, LAYOUT, is_leaf=lambda x: isinstance(x, tuple))


def specs(tree):
    return [[*s.spec] for s in jax.tree.leaves(tree)]


@pytest.mark.parametrize("case", [c for c in CASES if c.takes_other_params], ids=repr)
def test_each_fits(case):
    tx, params = case.tx(), placed(MESH)
    state = jax.eval_shape(tx.init, jax.eval_shape(lambda x: x, jax.tree.map(_shape, params)))
    shardings = fo.state_shardings(tx, params)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    like = {(x.shape, str(path[-1])): [*x.sharding.spec] for path, x in jax.tree_util.tree_leaves_with_path(params)}
    places = jax.tree_util.tree_leaves_with_path(state)
    for (path, x), sharding in zip(places, jax.tree.leaves(shardings), strict=True):
        sharding.shard_shape(x.shape)  # raises for one that does not divide the shape
        if any(str(key) in ".mu.nu.trace" for key in path) and (own := like.get((x.shape, str(path[-1])))):
            assert [*sharding.spec] == own, jax.tree_util.keystr(path)


def _shape(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


@pytest.mark.parametrize(
    "tx, slot, expected",
    [
        (fo.adam(0.1), lambda s: s[0].nu, [["model"], ["data", "model"], [None, "data", "model"], []]),
        (fo.sm3(0.1), lambda s: s[0].mu[0]["dense"]["kernel"], [["data"]]),
        (fo.scale_by_factored_rms(min_dim_size_to_factor=2), lambda s: s.v_row["layers"], [[None, "model"]]),
        (fo.scale_by_factored_rms(min_dim_size_to_factor=2), lambda s: s.v_col["layers"], [[None, "data"]]),
        (fo.scale_by_lbfgs(3), lambda s: s.diff_params_memory["layers"], [[None, None, "data", "model"]]),
        (fo.apollo(0.1, rank=2), lambda s: s[0].mu["dense"]["kernel"], [["data", None]]),
        (fo.shampoo(0.1), lambda s: s[0].statistics[0]["dense"]["kernel"], [[None, "data", "model"]]),
        (fo.shampoo(0.1, distributed="local"), lambda s: s[0].statistics[0]["dense"]["kernel"], [[None] * 3]),
    ],
    ids=["adam", "sm3", "rows", "columns", "lbfgs", "apollo", "shampoo", "shampoo, local"],
)
def test_slots_of_other_shapes(tx, slot, expected):
    assert specs(slot(fo.state_shardings(tx, placed(MESH)))) == expected


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_as_what_init_is_compiled_with(kind):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    params = jax.tree.map(lambda x: jax.device_put(jnp.zeros(x.shape), x.sharding), placed(mesh))
    tx = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(1e-3))
    shardings = fo.state_shardings(tx, params)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    assert jax.tree.map(lambda x: x.sharding, state) == shardings
    kernel = state[1][0].mu["dense"]["kernel"]
    assert {s.data.shape for s in kernel.addressable_shards} == {(32, 16)}

    @jax.jit
    def step(params, state):
        updates, state = tx.update(params, state, params)
        return fo.apply_updates(params, updates), state

    before = len(compiled)
    with jax.set_mesh(mesh):
        step(*step(params, state))
        if kind == AxisType.Auto:  # explicit params were placed with specs that jit's results do not have
            assert sum("step" in name for name in compiled[before:]) == 1


def test_the_mesh_of_the_call():
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    for shardings in (fo.state_shardings(fo.adam(0.1), {"w": np.zeros(4)}, mesh), _under(mesh)):
        assert {(s.mesh, s.spec) for s in jax.tree.leaves(shardings)} == {(mesh, P())}


def _under(mesh):
    with jax.set_mesh(mesh):
        return fo.state_shardings(fo.adam(0.1), {"w": np.zeros(4)})


def test_errors():
    tx, mesh = fo.adam(0.1), jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    other = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    w = {axis.axis_names[0]: jax.device_put(jnp.zeros(4), NamedSharding(axis, P())) for axis in (mesh, other)}
    with pytest.raises(ValueError, match="needs a mesh"):
        fo.state_shardings(tx, {"w": np.zeros(4)})
    with pytest.raises(ValueError, match=r"params\['data'\] lies on a mesh of {'data': 2}, and params\['rows'\]"):
        fo.state_shardings(tx, w)
    with pytest.raises(
        ValueError, match=r"mesh has the axes {'rows': 2}, but the params lie on a mesh of {'data': 2}"
    ):
        fo.state_shardings(tx, w["data"], other)
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(lambda w: fo.state_shardings(tx, w) and w)(w["data"])
