"""Dion2 and NorDion2 beyond the table of cases: which lines move, what is kept for later, stacks and meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import functional_opt as fo

from ..helpers import assert_close, train_eagerly

RNG = np.random.default_rng(0)
G = RNG.standard_normal((3, 6, 4)).astype("float32")
RULES = [fo.scale_by_dion2, fo.scale_by_nordion2]


@pytest.mark.parametrize("fraction, chosen", [(0.1, 1), (0.25, 1), (0.26, 2), (1.0, 4)])
@pytest.mark.parametrize("rule", RULES)
def test_so_many_lines_move_and_decay(rule, fraction, chosen):
    u, state = train_eagerly(rule(fraction=fraction, momentum=0.5), G[0], G, steps=1)
    moved = np.any(np.asarray(u) != 0, axis=0)
    largest = np.argsort(-np.abs(G[0]).sum(0))[:chosen]
    assert sorted(np.flatnonzero(moved)) == sorted(largest)
    np.testing.assert_allclose(state.mu, np.where(moved, 0.5, 1.0) * G[0], rtol=1e-6)


def test_a_wide_matrix_moves_by_rows_in_dion2_and_by_columns_in_nordion2():
    u, _ = train_eagerly(fo.scale_by_dion2(fraction=0.5), G[0].T, G.mT, steps=1)
    assert np.sum(np.any(np.asarray(u) != 0, axis=1)) == 2
    u, _ = train_eagerly(fo.scale_by_nordion2(fraction=0.5), G[0].T, G.mT, steps=1)
    assert np.sum(np.any(np.asarray(u) != 0, axis=0)) == 3


def test_all_lines_are_muon_without_bias_correction():
    grads = jnp.asarray(np.stack([G[0], G[1]]))
    u, _ = train_eagerly(fo.scale_by_dion2(fraction=1.0), G[0], grads, steps=2)
    muon = fo.chain(fo.trace(0.95), fo.orthogonalize(), fo.scale((4 / 6) ** 0.5))
    assert_close(u, train_eagerly(muon, G[0], grads, steps=2)[0], rtol=1e-4, atol=1e-6)


def test_a_line_that_is_left_out_is_chosen_later():
    g = np.broadcast_to(np.diag([3.0, 2.0, 1.0]).astype("float32"), (60, 3, 3))
    tx, moved = fo.scale_by_dion2(fraction=0.3, momentum=0.0), np.zeros(3)
    state = tx.init(g[0])
    for _ in range(60):
        u, state = tx.update(g[0], state)
        moved += np.any(np.asarray(u) != 0, axis=1)
    assert moved.sum() == 60 and np.all(moved >= 10)


@pytest.mark.parametrize("rule", RULES)
def test_a_stack_is_its_matrices(rule):
    both, _ = train_eagerly(rule(fraction=0.5), G[:2], np.stack([G[:2]] * 2), steps=2)
    for i in range(2):
        one, _ = train_eagerly(rule(fraction=0.5), G[i], np.stack([G[i]] * 2), steps=2)
        np.testing.assert_allclose(both[i], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_zeros_and_what_is_no_matrix(rule):
    u, state = train_eagerly(rule(), G[0], np.zeros_like(G))
    assert not u.any() and not state.mu.any()
    with pytest.raises(ValueError, match=r"\['b'\] has shape \(4,\)"):
        rule().init({"b": jnp.ones(4)})
    with pytest.raises(ValueError, match="fraction must be in"):
        rule(fraction=0.0)
    assert rule().update(jnp.zeros((0, 3)), rule().init(jnp.zeros((0, 3))))[0].shape == (0, 3)


@pytest.mark.parametrize("distributed", ["owners", "local"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("rule", RULES)
def test_numbers_do_not_depend_on_the_mesh(rule, kind, distributed):
    shapes = {"wide": (8, 24), "tall": (24, 8), "stack": (3, 8, 8)}
    specs = {"wide": PartitionSpec("data", "model"), "tall": PartitionSpec(None, "model"), "stack": PartitionSpec()}
    grads = {name: RNG.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    tx = rule(distributed=distributed)
    expected, _ = tx.update(grads, tx.init(grads))
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh):
        placed = {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in grads.items()}
        state = jax.jit(tx.init, out_shardings=fo.state_shardings(tx, placed))(placed)
        updates, after = jax.jit(tx.update)(placed, state, placed)
    for name, x in updates.items():
        np.testing.assert_allclose(x, expected[name], atol=1e-5)
        assert x.sharding.is_equivalent_to(placed[name].sharding, x.ndim)
        assert after.mu[name].sharding.is_equivalent_to(placed[name].sharding, x.ndim)
