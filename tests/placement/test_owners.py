"""Owners: matrices on a mesh are worked on whole, each by one device, and little is sent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import functional_opt as fo
from functional_opt.placement.traffic import collectives

P = PartitionSpec
KINDS = [AxisType.Auto, AxisType.Explicit]
LAYOUTS = {
    "replicated": ((4, 1), P()),
    "FSDP": ((4, 1), P("data")),
    "TP, rows": ((2, 2), P("model")),
    "TP, columns": ((2, 2), P(None, "model")),
    "2-D": ((2, 2), P("data", "model")),
}
COUNT, SIZE = 8, 32
BYTES = COUNT * SIZE * SIZE * 4


def matrices(seed, sharding):
    rng = np.random.default_rng(seed)
    whole = {f"m{i}": rng.normal(size=(SIZE, SIZE)).astype("float32") for i in range(COUNT)}
    return jax.device_put(whole, sharding)


def compiled(tx, layout, kind):
    """The updates of one step on a mesh, and its program."""
    shape, spec = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh):
        params, grads = (matrices(seed, NamedSharding(mesh, spec)) for seed in range(2))
        state = jax.jit(tx.init, out_shardings=fo.state_shardings(tx, params))(params)
        program = jax.jit(tx.update).lower(grads, state, params).compile()
        updates, _ = program(grads, state, params)
    assert all(x.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2) for x in updates.values())
    return updates, program


@pytest.mark.parametrize("kind", KINDS)
def test_muon(kind):
    """Measured for 8 matrices of 32 × 32 on 4 devices: all-to-alls there and back, or a gather of the updates."""
    expected, _ = on_one_device(fo.scale_by_muon)
    work = compiled(fo.scale_by_muon(distributed="local"), "replicated", kind)[1].cost_analysis()["flops"]
    first = None
    for layout in LAYOUTS:
        updates, program = compiled(fo.scale_by_muon(), layout, kind)
        sent = sum(collectives(program.as_text()).values())
        assert sent <= (1 if layout in ("replicated", "FSDP") else 1.5) * BYTES, (layout, sent / BYTES)
        assert program.cost_analysis()["flops"] <= 1.1 / 4 * work, layout
        first = first or updates
        for name, x in updates.items():
            np.testing.assert_array_equal(x, first[name])
            np.testing.assert_allclose(x, expected[name], atol=3e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [fo.normuon, fo.scion], ids=["normuon", "scion"])
def test_others_do_their_share(make, kind):
    work = {}
    for how in ("owners", "local"):
        updates, program = compiled(make(0.1, distributed=how), "replicated", kind)
        work[how] = program.cost_analysis()["flops"], updates
    assert work["owners"][0] < 0.4 * work["local"][0]
    for name, x in work["local"][1].items():
        np.testing.assert_allclose(x, work["owners"][1][name], rtol=1e-5, atol=1e-5)


NUMBERS = {
    fo.scale_by_soap: {"b1": 0.9},
    fo.scale_by_kl_soap: {"max_precond_dim": 4},  # the bases of longer axes here are arbitrary in part
    fo.scale_by_kl_shampoo: {"max_precond_dim": 4},
    fo.scale_by_shampoo: {"eps": 1e-4, "preconditioner_every": 2},
    fo.scale_by_psgd_kron: {"precond_lr": 0.05},
}
FACTORED = {  # what a device sends and gets in a step on FSDP, in multiples of its part of the params
    "soap": (fo.scale_by_soap, 8),
    "kl_soap": (fo.scale_by_kl_soap, 8.5),
    "kl_shampoo": (fo.scale_by_kl_shampoo, 7.5),
    "shampoo": (functools.partial(fo.scale_by_shampoo, eps=1e-3), 6),
    "psgd_kron": (fo.scale_by_psgd_kron, 6),
    "dion": (fo.scale_by_dion, 5),
}


@functools.cache
def on_one_device(make):
    """The updates of one step, and its work."""
    tx = make()
    params, grads = matrices(0, jax.devices()[0]), matrices(1, jax.devices()[0])
    state = tx.init(params)
    program = jax.jit(tx.update).lower(grads, state, params).compile()
    return program(grads, state, params)[0], program.cost_analysis()["flops"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FACTORED)
def test_factors_lie_with_owners(name, kind):
    """The bytes of a step whose roots are not due, the work, and the numbers, beside those of one device."""
    make, moves = FACTORED[name]
    expected, work = on_one_device(make)
    for layout in ("FSDP", "2-D"):
        updates, program = compiled(make(), layout, kind)
        sent = sum(collectives(program.as_text(), due=False).values())
        assert sent <= (moves / 4 if layout == "FSDP" else 4) * 1.03 * BYTES, (layout, sent / BYTES)
        assert program.cost_analysis()["flops"] <= 1.2 / 4 * work, layout
        for key, x in updates.items():
            np.testing.assert_allclose(x, expected[key], atol=5e-5 * np.abs(expected[key]).max())


SHAPES = {"b": (8,), "w": (8, 4), "v": (8, 4), "odd": (3, 5), "conv": (4, 3, 2), "frozen": (4, 4), "n": ()}
SPECS = {"b": P("data"), "w": P("data", "model"), "v": P(None, "model"), "conv": P("data"), "frozen": P("data")}


def placed(mesh, name):
    return NamedSharding(mesh, SPECS.get(name, P()))


@functools.cache
def three_steps(make, mesh=None):
    """The last updates and state, on one device or on a mesh."""
    draws = [np.random.default_rng(seed) for seed in range(4)]
    trees = [{name: rng.normal(size=shape).astype("float32") for name, shape in SHAPES.items()} for rng in draws]
    if mesh:
        trees = [{name: jax.device_put(x, placed(mesh, name)) for name, x in tree.items()} for tree in trees]
    params, *grads = trees
    tx = fo.inject_hyperparams(make)(**NUMBERS[make])
    state = tx.init(params)
    step = jax.jit(tx.update)
    for g in grads:
        updates, state = step(g | {"frozen": None}, state, params)
    return updates, state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", NUMBERS)
def test_steps_by_owners_are_those_of_one_device(make, kind):
    """Leaves of one, two and three axes, one that the devices do not divide, and one without a gradient."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    alone, one = three_steps(make)
    with jax.set_mesh(mesh):
        updates, several = three_steps(make, mesh)
    assert updates["frozen"] is alone["frozen"] is None
    for key in SHAPES.keys() - {"frozen"}:
        np.testing.assert_allclose(updates[key], alone[key], atol=3e-4, err_msg=key)
        assert updates[key].sharding.is_equivalent_to(placed(mesh, key), updates[key].ndim), key
    assert jax.tree.map(jnp.shape, one) == jax.tree.map(jnp.shape, several)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [*NUMBERS, fo.scale_by_dion, fo.scale_by_muon])
def test_outside_of_jit_too(make, kind):
    """And without `jax.set_mesh`: the arrays tell the mesh."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    w = np.random.default_rng(0).normal(size=(4, 4)).astype("float32")
    params = jax.device_put({"w": w, "v": w[::-1]}, NamedSharding(mesh, P("data", "model")))
    tx = make()
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
    for x in updates.values():
        assert x.sharding.is_equivalent_to(params["w"].sharding, 2)


@pytest.mark.parametrize("layout", ["one device", *LAYOUTS])
def test_dion_ignores_rounding_errors(layout):
    """Gradients of rank 1: what the other columns hold depends on the order of sums, and so on the layout."""
    rng = np.random.default_rng(0)
    g = {"w": (rng.normal(size=(SIZE, 1)) @ rng.normal(size=(1, SIZE))).astype("float32")}
    mesh = jax.make_mesh(LAYOUTS.get(layout, ((4, 1),))[0], ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    place = None if layout == "one device" else NamedSharding(mesh, LAYOUTS[layout][1])
    g, tx = jax.device_put(g, place), fo.scale_by_dion()
    u, _ = jax.jit(tx.update)(g, tx.init(g))
    rows, values, columns = np.linalg.svd(np.asarray(g["w"], float))
    np.testing.assert_allclose(u["w"], np.outer(rows[:, 0], columns[0]), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_that_differ(kind):
    """Stacks, tall matrices, counts that the devices do not divide, and matrices split on different sides."""
    shapes = {"one": (8, 24), "tall": (24, 8), "stack": (3, 8, 24), "deep": (2, 2, 8, 24), "square": (16, 16)}
    specs = {
        "one": P("data"),
        "tall": P("data", "model"),
        "stack": P(None, "model"),
        "deep": P("model"),
        "square": P(),
    }
    rng = np.random.default_rng(0)
    grads = {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    tx = fo.orthogonalize()
    expected, _ = tx.update(grads, fo.EmptyState())
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh):
        placed = {name: jax.device_put(x, NamedSharding(mesh, specs.get(name, P()))) for name, x in grads.items()}
        updates, _ = jax.jit(tx.update)(placed, fo.EmptyState())
    for name, x in updates.items():
        np.testing.assert_allclose(x, expected[name], atol=3e-6)
        assert x.sharding.is_equivalent_to(placed[name].sharding, x.ndim)


def test_inside_shard_map_nothing_is_sent():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    tx, x = fo.orthogonalize(), jax.random.normal(jax.random.key(0), (4, 8, 8))
    rows = dict(mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    local = jax.shard_map(lambda x: tx.update(x, fo.EmptyState())[0], **rows)
    np.testing.assert_allclose(jax.jit(local)(x), tx.update(x, fo.EmptyState())[0], atol=1e-6)
    assert not collectives(jax.jit(local).lower(x).compile().as_text())


def test_clips_send_a_number_for_each_leaf():
    """Leaves that are split differently are not stacked for their norm."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    tx = fo.clip_by_global_norm(1.0)
    specs = {"a": P("model"), "b": P(None, "model"), "c": P()}
    grads = {name: jax.device_put(jnp.ones((16, 16)), NamedSharding(mesh, spec)) for name, spec in specs.items()}
    sent = collectives(jax.jit(tx.update).lower(grads, tx.init(grads)).compile().as_text())
    assert set(sent) == {"all-reduce"} and sent["all-reduce"] <= 8
