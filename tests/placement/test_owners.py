"""Owners: matrices on a mesh are worked on whole, each by one device, and little is sent."""

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
    """The updates of one step, and its program."""
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
    alone = fo.scale_by_muon()
    params, grads = matrices(0, jax.devices()[0]), matrices(1, jax.devices()[0])
    expected, _ = jax.jit(alone.update)(grads, alone.init(params), params)
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
