"""Blocks: matrices that lie side by side in one leaf, such as heads or Q, K and V, are worked on one by one."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import functional_opt as fo
from functional_opt.transforms.matrices.dimension_numbers import Stacks

from ...helpers import assert_close

P, N = PartitionSpec, fo.MuonDimensionNumbers
RNG = np.random.default_rng(0)
QKV, OUT = RNG.normal(size=(8, 16)).astype("float32"), RNG.normal(size=(8, 8)).astype("float32")
FUSED = {"at": {"qkv": QKV, "out": OUT, "off": None}}
RULES = {"*/qkv": N(0, 1, output_blocks=(8, 4, 4)), "*/out": N(0, 1, reduction_blocks=2)}
APART = {"q": QKV[:, :8], "k": QKV[:, 8:12], "v": QKV[:, 12:], "out0": OUT[:4], "out1": OUT[4:]}


def joined(apart):
    columns = [apart[name] for name in "qkv"]
    return {"at": {"qkv": np.concatenate(columns, 1), "out": np.concatenate([apart["out0"], apart["out1"]])}}


@jax.jit
def steps(tx, params):
    def step(i, carry):
        params, state = carry
        updates, state = tx.update(jax.tree.map(lambda w: jnp.sin(7 * w + i), params), state, params)
        return fo.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, 3, step, (params, tx.init(params)))


def named(make):
    return "muon_weight_dimension_numbers" if make is fo.muon else "weight_dimension_numbers"


@pytest.mark.parametrize("make", [fo.muon, fo.normuon, fo.dion, fo.muonh, fo.scion])
def test_blocks_move_as_leaves_of_their_own(make):
    expected, _ = steps(make(0.05, **{named(make): N()}), APART)
    fused, _ = steps(make(0.05, **{named(make): RULES}), FUSED)
    assert fused["at"].pop("off") is None
    assert_close(fused, joined(expected), rtol=1e-4, atol=1e-5)


def test_both_sides_are_cut_and_put_together():
    x = RNG.normal(size=(2, 6, 5, 4)).astype("float32")
    for numbers in (N((0, 1), 3, (7, 5), 2), N(1, 2, 3, (2, 3)), N(-3, 3, (1, 2, 3), (3, 1)), N((1,), (3, 2), 2, 4)):
        stacks = Stacks([numbers], x)
        blocks = stacks.stack(x)
        np.testing.assert_array_equal(stacks.back(blocks), x)
    assert Stacks([N(1, 2, 3, 5)], x).stack(x).shape == (2, 4, 3, 5, 2, 1)
    assert jax.tree.map(np.shape, Stacks([N(1, 2, None, (2, 3))], x).stack(x)) == ((2, 4, 6, 2), (2, 4, 6, 3))


@pytest.mark.parametrize("spec", [P("d"), P(None, "d")])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("make", [fo.muon, fo.normuon, fo.dion])
def test_blocks_on_a_mesh(make, kind, spec):
    """K and V have fewer columns than the devices divide evenly; updates and slots lie where their leaves do."""
    rules = {"*/qkv": N(0, 1, output_blocks=(10, 3, 3)), "*/out": N(0, 1, 2, 4), "*/off": None}
    tx = make(0.05, **{named(make): rules})
    expected, whole = steps(tx, FUSED)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        params = jax.device_put(FUSED, NamedSharding(mesh, spec))
        state = jax.jit(tx.init, out_shardings=fo.state_shardings(tx, params))(params)
        for i in range(3):
            grads = jax.tree.map(lambda w: jnp.sin(7 * w + i), params)  # noqa: B023
            updates, state = jax.jit(tx.update)(grads, state, params)
            assert all(u.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2) for u in jax.tree.leaves(updates))
            params = fo.apply_updates(params, updates)
    assert_close(params, expected, rtol=1e-4, atol=1e-5)
    assert_close(state, whole, rtol=1e-3, atol=1e-4)


def test_slots_of_blocks_go_through_checkpoints_and_8_bits():
    tx = fo.normuon(0.05, weight_dimension_numbers=RULES)
    params, state = steps(tx, FUSED)
    again = fo.from_arrays(*fo.to_arrays(tx, params, state))
    assert_close(again[2], state, rtol=0)
    coded, _ = steps(fo.quantize_state(tx, block_size=4, min_size=0), FUSED)
    assert_close(coded, params, rtol=0.2, atol=0.05)


def test_what_was_stored_without_blocks_loads():
    tx = fo.muon(0.1, muon_weight_dimension_numbers=N(0, (1, 2)))
    old = fo.to_config(tx)

    def without_blocks(node):
        if isinstance(node, dict):
            return {k: without_blocks(x) for k, x in node.items() if k not in ("reduction_blocks", "output_blocks")}
        return [*map(without_blocks, node)] if isinstance(node, list | tuple) else node

    assert without_blocks(old) != old and fo.from_config(without_blocks(old)) == tx
    for numbers in (N(0, 1, 2), N(0, 1, None, (1, 2))):
        tx = fo.muon(0.1, muon_weight_dimension_numbers={"*/kernel": numbers})
        assert fo.from_config(fo.to_config(tx)) == tx == pickle.loads(pickle.dumps(tx))
    assert repr(N(0, (1, 2))) == "MuonDimensionNumbers(reduction_axis=0, output_axis=(1, 2))"


def test_describe_tells():
    whys = {r.path: r.why for r in fo.describe(fo.muon(0.1, muon_weight_dimension_numbers=RULES), FUSED).routes}
    assert whys["at/qkv"] == ("weight_dimension_numbers: columns in blocks of 8, 4, 4",)
    assert whys["at/out"] == ("weight_dimension_numbers: rows in 2 blocks",)


@pytest.mark.parametrize("blocks", [0, -1, 1.5, True, (), (4, 0), "qkv"])
def test_no_blocks(blocks):
    with pytest.raises(ValueError, match=r"\['\*/w'\]: blocks must be a count"):
        fo.muon(0.1, muon_weight_dimension_numbers={"*/w": N(0, 1, blocks)})


def test_blocks_that_do_not_fit():
    for blocks in (3, (5, 4), (8,), 9):
        with pytest.raises(ValueError, match=r"weight_dimension_numbers\['w'\] cuts 10 columns into blocks, got"):
            fo.scale_by_muon(weight_dimension_numbers=N(0, 1, None, blocks)).init({"w": jnp.ones((2, 10))})
    tx = fo.scale_by_muon(weight_dimension_numbers=N(0, 1, None, (1, 2)))
    state = tx.init({"w": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match=r"\['w'\] cuts a leaf of shape \(4, 3\) .* have shape \(2, 3\)"):
        tx.update({"w": jnp.ones((4, 3))}, state)
    with pytest.raises(TypeError, match="must hold GaLoreDimensionNumbers"):
        fo.galore(0.1, weight_dimension_numbers=N(0, 1, 2))
    with pytest.raises(ValueError, match="once, no blocks, got Muon"):
        fo.scale_by_galore(1, weight_dimension_numbers=lambda _: N(0, 1, 2)).init(jnp.ones((2, 2)))
