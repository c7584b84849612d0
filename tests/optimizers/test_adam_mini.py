"""adam_mini: its blocks."""

import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo


def test_blocks_by_shape_and_by_rule():
    params = {"embedding": np.ones((5, 3)), "query": np.ones((4, 2, 3)), "out": np.ones((4, 6)), "b": np.ones(4)}
    rules = {"**/embedding": (-1, 1), "query": (1, -1, 1), "out": [2, 3]}
    nu = fo.adam_mini(0.1).init(params)[0].nu
    assert {k: v.shape for k, v in nu.items()} == {
        "embedding": (1, 3),
        "query": (1, 1, 3),
        "out": (1, 6),
        "b": (1,),
    }
    nu = fo.adam_mini(0.1, block=rules).init(params)[0].nu
    assert {k: v.shape for k, v in nu.items()} == {
        "embedding": (5, 1),
        "query": (1, 2, 1),
        "out": (2, 3),
        "b": (1,),
    }


def test_a_block_has_the_mean_of_its_squares():
    g = np.arange(24.0).reshape(4, 6)
    tx = fo.scale_by_adam_mini(b2=0.0, eps=0.0, block=fo.PathRules({"w": (2, 3)}))
    u, state = tx.update({"w": jnp.asarray(g)}, tx.init({"w": jnp.zeros((4, 6))}))
    means = np.array([[np.mean(g[i : i + 2, j : j + 2] ** 2) for j in (0, 2, 4)] for i in (0, 2)])
    np.testing.assert_allclose(state.nu["w"], means, rtol=1e-6)
    np.testing.assert_allclose(u["w"], g / np.sqrt(np.kron(means, np.ones((2, 2)))), rtol=1e-6)


def test_what_does_not_fit_is_refused():
    w = {"w": jnp.ones((4, 6))}
    for counts in ((3, 1), (1,), (1, 1, 1)):
        with pytest.raises(ValueError, match=r"params\['w'\] has shape \(4, 6\), which the block"):
            fo.adam_mini(0.1, block={"**/w": counts}).init(w)
    with pytest.raises(ValueError, match="matches no leaf"):
        fo.adam_mini(0.1, block={"*/kernel": (1, 1)}).init(w)
    for rule in (3, (0, 1), (1.0, 1)):
        with pytest.raises(TypeError, match=r"block\['\*'\] must hold a number"):
            fo.scale_by_adam_mini(block={"*": rule})
    with pytest.raises(TypeError, match="block must be a dict"):
        fo.scale_by_adam_mini(block=(1, 2))
