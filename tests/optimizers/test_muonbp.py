"""MuonBP beyond the table of cases: its blocks on a mesh, what is sent, and Muon as its border."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import functional_opt as fo
from functional_opt.placement.traffic import collectives

from ..helpers import assert_close, train_eagerly

P, N = PartitionSpec, fo.MuonDimensionNumbers
RNG = np.random.default_rng(0)
G = {name: RNG.normal(size=(4, 16, 16)).astype("float32") for name in ("up", "down", "whole")}
SPECS = {"up": P(None, "model"), "down": P("model"), "whole": P()}
BLOCKS = {"up": N(0, 1, None, 4), "down": N(0, 1, 4), "whole": None}


def at(i):
    return {name: g[i] for name, g in G.items()}


def test_period_one_and_one_block_are_muon():
    muon = fo.chain(fo.ema(0.95, debias=False), fo.orthogonalize(), fo.scale_by_shape(0.2))
    expected = train_eagerly(muon, at(0), G, steps=4)[0]
    for tx in (fo.scale_by_muonbp(BLOCKS, 1), fo.scale_by_muonbp(None, 3), fo.scale_by_muonbp(N(0, 1, 1, 1), 2)):
        assert_close(train_eagerly(tx, at(0), G, steps=4)[0], expected, rtol=1e-5, atol=1e-6)


def test_full_steps_begin_and_block_steps_are_scaled():
    tx = fo.scale_by_muonbp(BLOCKS, 2, block_scale=0.5, beta=0.0)
    first, state = tx.update(at(0), tx.init(at(0)))
    second, state = tx.update(at(0), state)
    third, _ = tx.update(at(0), state)
    assert_close(third, first, atol=1e-6)
    for side in range(4):
        rows = slice(4 * side, 4 * side + 4)
        block, _ = fo.orthogonalize().update(jnp.asarray(G["up"][0][:, rows]), fo.EmptyState())
        np.testing.assert_allclose(second["up"][:, rows], 0.5 * 0.2 * 4.0 * block, atol=1e-6)
        block, _ = fo.orthogonalize().update(jnp.asarray(G["down"][0][rows]), fo.EmptyState())
        np.testing.assert_allclose(second["down"][rows], 0.5 * 0.2 * 4.0 * block, atol=1e-6)
    np.testing.assert_allclose(second["whole"], 0.5 * first["whole"], atol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_block_steps_of_shards_send_nothing(kind):
    """What the program may send at all is what full steps do, and these are in a branch, as those of Muon."""
    mesh = jax.make_mesh((4,), ("model",), axis_types=(kind,))
    place = {name: NamedSharding(mesh, SPECS[name]) for name in ("up", "down")}
    with jax.set_mesh(mesh):
        params = {name: jax.device_put(G[name][0], where) for name, where in place.items()}
        assert fo.shard_blocks(params) == {"up": N((0,), (1,), None, 4), "down": N((0,), (1,), 4)}
        sent = {}
        for tx in (fo.scale_by_muon(), fo.scale_by_muonbp(fo.shard_blocks(params), 2)):
            state = jax.jit(tx.init, out_shardings=fo.state_shardings(tx, params))(params)
            text = jax.jit(tx.update).lower(params, state, params).compile().as_text()
            sent[type(tx)] = [sum(collectives(text, due).values()) for due in (True, False)]
    assert sent[fo.scale_by_muonbp] == [sent[fo.scale_by_muon][0], 0]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_numbers_do_not_depend_on_the_mesh(kind):
    """With blocks that are not the shards, too."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    place = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    tx = fo.scale_by_muonbp(BLOCKS, 2)
    state = tx.init(at(0))
    with jax.set_mesh(mesh):
        params = jax.device_put(at(0), place)
        placed = jax.jit(tx.init, out_shardings=fo.state_shardings(tx, params))(params)
        for i in range(4):
            updates, placed = jax.jit(tx.update)(jax.device_put(at(i), place), placed, params)
            expected, state = tx.update(at(i), state)
            assert_close(updates, expected, rtol=1e-4, atol=1e-5)
            assert all(u.sharding.is_equivalent_to(place[name], 2) for name, u in updates.items())


def test_explain_says_what_is_due():
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Explicit,))
    params = {"w": jax.ShapeDtypeStruct((16, 16), "float32", sharding=NamedSharding(mesh, P(None, "model")))}
    placed = fo.explain(fo.scale_by_muonbp(fo.shard_blocks(params)), params).placed
    assert not sum(placed.sent.values()) and placed.due > 0


def test_shards_that_are_no_blocks():
    mesh = jax.sharding.AbstractMesh((4,), ("model",))
    w = jax.ShapeDtypeStruct((8, 4, 8), "float32", sharding=NamedSharding(mesh, P(None, None, "model")))
    numbers = fo.MuonDimensionNumbers(0, (1, 2))
    with pytest.raises(ValueError, match=r"params\['q'\] of shape \(8, 4, 8\) is split as"):
        fo.shard_blocks({"q": w}, numbers)
    assert fo.shard_blocks({"q": w, "b": jnp.ones(3), "n": None}) == {
        "q": N((1,), (2,), output_blocks=4),
        "b": None,
        "n": None,
    }
    with pytest.raises(ValueError, match="cuts 16 columns into blocks, got 3"):
        fo.scale_by_muonbp(N(0, 1, None, 3)).init(at(0))
