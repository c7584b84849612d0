"""Dion beyond the table of cases: the rank, what is kept for later, and stacks."""

import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ..helpers import assert_close, make_grads, make_params, train_eagerly

RNG = np.random.default_rng(0)
G = RNG.standard_normal((3, 6, 4)).astype("float32")


@pytest.mark.parametrize("fraction, rank", [(0.1, 1), (0.5, 2), (0.51, 3), (1.0, 4)])
def test_updates_have_the_rank_and_the_size(fraction, rank):
    u, state = train_eagerly(fo.scale_by_dion(rank_fraction=fraction), G[0], G, steps=3)
    s = np.linalg.svd(u, compute_uv=False)
    assert state.q.shape == (6, rank) and np.linalg.matrix_rank(u, tol=1e-4) == rank
    np.testing.assert_allclose(np.sum(s**2), rank * 4 / 6, rtol=1e-5)  # columns of Q are of one size


def test_momentum_decays_where_the_update_is():
    """So that at full rank it decays everywhere, and at rank one in one direction of the outputs."""
    _, full = train_eagerly(fo.scale_by_dion(0.9), G[0], G, steps=2)
    np.testing.assert_allclose(full.mu, 0.9 * (0.9 * G[0] + G[1]), rtol=1e-4, atol=1e-5)
    _, low = train_eagerly(fo.scale_by_dion(0.9, 0.1), G[0], G, steps=1)
    np.testing.assert_allclose(np.linalg.svd(G[0] - low.mu, compute_uv=False)[1:], 0.0, atol=1e-5)
    u, _ = train_eagerly(fo.scale_by_dion(0.9, 0.1), G[0], G, steps=1)
    np.testing.assert_allclose(G[0] - low.mu, 0.1 * np.sum(G[0] * u) / np.sum(u * u) * np.asarray(u), atol=1e-4)


def test_a_constant_gradient_is_made_orthogonal():
    g = np.broadcast_to(G[0], (300, 6, 4))
    u, _ = train_eagerly(fo.scale_by_dion(), G[0], g, steps=300)
    left, _, right = np.linalg.svd(G[0], full_matrices=False)
    np.testing.assert_allclose(u, (4 / 6) ** 0.5 * left @ right, atol=1e-3)


def test_a_stack_is_its_matrices():
    both, _ = train_eagerly(fo.scale_by_dion(), G[:2], np.stack([G[:2]] * 2), steps=2)
    for i in range(2):
        one, _ = train_eagerly(fo.scale_by_dion(), G[i], np.stack([G[i]] * 2), steps=2)
        np.testing.assert_allclose(both[i], one, rtol=1e-4, atol=1e-5)


def test_zeros_leave_q_alone():
    tx = fo.scale_by_dion(rank_fraction=0.5)
    u, state = train_eagerly(tx, G[0], np.zeros_like(G))
    assert_close(state.q, tx.init(G[0]).q)
    assert not u.any()


def test_vectors_are_refused_and_other_seeds_start_elsewhere():
    with pytest.raises(ValueError, match=r"\['dense'\]\['bias'\] has shape \(4,\)"):
        fo.scale_by_dion().init(make_params())
    assert jnp.any(fo.scale_by_dion(seed=1).init(G[0]).q != fo.scale_by_dion().init(G[0]).q)
    with pytest.raises(ValueError, match="rank_fraction must be in"):
        fo.dion(0.1, rank_fraction=0.0)


def test_the_rest_is_adamw():
    params, grads = make_params(), make_grads(3)
    tx = fo.dion(0.1, matrix_mask=False, adam_learning_rate=0.2, adam_weight_decay=0.1)
    updates, _ = train_eagerly(tx, params, grads, steps=3)
    assert_close(updates, train_eagerly(fo.adamw(0.2, weight_decay=0.1), params, grads, steps=3)[0])
