"""NorMuon beyond the table of cases: the size of its columns and of the whole, and stacks."""

import numpy as np
import pytest

import functional_opt as fo

from ..helpers import train_eagerly

G = np.random.default_rng(0).standard_normal((2, 6, 4)).astype("float32")


@pytest.mark.parametrize("rms", [0.2, None])
def test_columns_are_of_one_size_at_first_and_the_whole_is_always(rms):
    tx = fo.scale_by_normuon(consistent_rms=rms, nesterov=False)
    first, _ = train_eagerly(tx, G[0], G)
    size = np.linalg.norm(first, axis=0)
    np.testing.assert_allclose(size, size[0], rtol=1e-5)
    later, _ = train_eagerly(tx, G[0], G, steps=2)
    o, _ = train_eagerly(fo.scale_by_muon(nesterov=False), G[0], G, steps=2)
    whole = np.linalg.norm(o) if rms is None else 0.2 * np.sqrt(24)
    np.testing.assert_allclose(np.linalg.norm(later), whole, rtol=1e-5)


def test_a_stack_is_its_matrices():
    tx = fo.scale_by_normuon()
    both, state = train_eagerly(tx, G, np.stack([G, G]), steps=2)
    assert state.nu.shape == (2, 1, 4)
    for g, u in zip(G, both, strict=True):
        np.testing.assert_allclose(train_eagerly(tx, g, np.stack([g, g]), steps=2)[0], u, rtol=1e-4, atol=1e-6)


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"updates has shape \(4,\), but this rule is for matrices"):
        fo.scale_by_normuon().update(G[0, 0], fo.scale_by_normuon().init(G[0, 0]))
