"""GaLore beyond the table of cases: leaves of more axes, wide ones, the size of its state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functional_opt as fo

from ..helpers import assert_close, structs

RNG = np.random.default_rng(0)
SHAPES = {"wide": (3, 8), "heads": (6, 2, 3), "bias": (4,), "other": (2, 2, 2)}


def draw():
    return {name: jnp.asarray(RNG.standard_normal(shape), "float32") for name, shape in SHAPES.items()}


PARAMS, GRADS = draw(), [draw() for _ in range(4)]


def numbers(kind):
    return {"wide": kind(), "heads": kind(0, (1, 2)), "bias": None, "other": None}


def run(tx, steps=4):
    state = tx.init(PARAMS)
    for g in GRADS[:steps]:
        u, state = tx.update(g, state, PARAMS)
    return u, state


OURS, THEIRS = fo.GaLoreDimensionNumbers, optax.contrib.GaLoreDimensionNumbers
ALL = {"wide": (0, 1), "heads": (2, (0, 1)), "other": ([0, -1], 1), "bias": None}


@pytest.mark.parametrize(
    "make",
    [
        lambda kind: None,
        numbers,
        lambda kind: lambda params: numbers(kind),
        lambda kind: {name: axes and kind(*axes) for name, axes in ALL.items()},
    ],
    ids=["none", "tree", "function", "all"],
)
def test_dimension_numbers_are_optax(make):
    tx = fo.scale_by_galore(2, 3, weight_dimension_numbers=make(OURS))
    peer = optax.contrib.scale_by_galore(2, 3, weight_dimension_numbers=make(THEIRS))
    u, state = jax.jit(lambda: run(tx))()
    theirs, peer_state = jax.jit(lambda: run(peer))()
    assert_close(u, theirs, rtol=1e-4, atol=1e-6)
    assert_close(state.base_optimizer_state.nu, peer_state.base_optimizer_state.nu, rtol=1e-4)
    assert hash(tx) == hash(fo.scale_by_galore(2, 3, weight_dimension_numbers=tx.weight_dimension_numbers))


def test_the_state_is_small():
    tx = fo.galore(0.1, rank=4)
    params = jax.ShapeDtypeStruct((1000, 64), "float32")
    shapes = [x.shape for x in jax.tree.leaves(structs(tx.init(params))) if x.shape]
    assert shapes == [(4, 64), (4, 64), (1000, 4)]
    short = structs(fo.galore(0.1, rank=4, state_dtype="bfloat16").init(params))
    assert all(x.dtype == "bfloat16" for x in jax.tree.leaves(short) if x.shape)


def test_between_decompositions_the_updates_stay_in_one_plane():
    tx = fo.scale_by_galore(1, update_proj_gap=2)
    state = tx.init(PARAMS)
    updates = []
    for g in GRADS:
        u, state = tx.update(g, state, PARAMS)
        updates.append(u["wide"])
    ranks = [np.linalg.matrix_rank(jnp.concatenate(updates[i : i + 2]), tol=1e-4) for i in range(3)]
    assert ranks == [1, 2, 1]


@pytest.mark.parametrize("spec", [OURS(0, 2), OURS(0, 0), OURS((0, 1), (1, 2))])
def test_axes_that_do_not_fit(spec):
    with pytest.raises(ValueError, match=r"weight_dimension_numbers\['heads'\] must name each axis"):
        fo.galore(0.1, weight_dimension_numbers={**numbers(OURS), "heads": spec}).init(PARAMS)


def test_one_spec_for_all_leaves_with_axes_enough():
    tx = fo.scale_by_galore(1, weight_dimension_numbers=OURS(0, -1))
    tree = {"wide": PARAMS["wide"], "bias": PARAMS["bias"]}
    state = tx.init(tree)
    assert state.projector["bias"] is None and state.projector["wide"].shape == (8, 1)


def test_an_optimizer_that_reads_params_is_refused():
    tx = fo.galore(0.1, base_optimizer=fo.adamw(0.1))
    with pytest.raises(ValueError, match="add_decayed_weights needs the params"):
        run(tx)
