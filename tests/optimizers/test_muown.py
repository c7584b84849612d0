"""Muown and weight_normalized: attention kernels and stacks, columns of zeros, and norms that do not drift."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ..helpers import train_compiled

RNG = np.random.default_rng(0)


def test_attention_kernels_and_stacks_are_trained_as_their_matrices():
    """(inputs, heads, head size), (heads, head size, outputs), and two layers in one leaf."""
    one, other = RNG.standard_normal((2, 4, 6)), RNG.standard_normal((6, 4))
    grads = RNG.standard_normal((8, 2, 4, 6)), RNG.standard_normal((8, 6, 4))
    params = {
        "attention": {"query": {"kernel": one[0].reshape(4, 2, 3)}, "out": {"kernel": other.reshape(2, 3, 4)}},
        "layers": {"kernel": one, "bias": np.ones((2, 6))},
    }
    given = {
        "attention": {
            "query": {"kernel": grads[0][:, 0].reshape(8, 4, 2, 3)},
            "out": {"kernel": grads[1].reshape(8, 2, 3, 4)},
        },
        "layers": {"kernel": grads[0], "bias": np.ones((8, 2, 6))},
    }
    for make in (fo.muown, fo.muonh):

        def alone(w, grads, make=make):
            return train_compiled(make(0.05), {"kernel": jnp.asarray(w)}, {"kernel": jnp.asarray(grads)})[0]["kernel"]

        found, _, _ = train_compiled(make(0.05), *jax.tree.map(jnp.asarray, (params, given)))
        expected, rtol, atol = alone(one[0], grads[0][:, 0]), 2e-4, 1e-5
        np.testing.assert_allclose(found["layers"]["kernel"][:, 0], expected, rtol, atol)
        query, out = (found["attention"][name]["kernel"] for name in ("query", "out"))
        np.testing.assert_allclose(query.reshape(8, 4, 6), expected, rtol, atol)
        np.testing.assert_allclose(out.reshape(8, 6, 4), alone(other, grads[1]), rtol, atol)


def test_columns_have_the_norms_that_the_state_says():
    w, grads = jnp.asarray(RNG.standard_normal((5, 3)), "float32"), jnp.asarray(RNG.standard_normal((30, 5, 3)))
    path, _, state = train_compiled(fo.weight_normalized(fo.sgd(0.1), fo.adam(0.1)), w, grads)
    np.testing.assert_allclose(jnp.linalg.norm(path[-1], axis=0), jnp.abs(state.magnitude[0]), rtol=1e-5)
    assert np.all(np.asarray(state.size[0]) > jnp.linalg.norm(w, axis=0))


def test_columns_of_zeros_stay():
    w = jnp.asarray([[1.0, 0.0], [2.0, 0.0]])
    path, updates, _ = train_compiled(fo.muown(0.1), {"kernel": w}, {"kernel": jnp.ones((5, 2, 2))})
    assert np.all(np.isfinite(updates["kernel"])) and np.all(np.asarray(path["kernel"])[..., 1] == 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norms_grow_less_than_with_muon(dtype):
    """With gradients that are noise, Muon's matrices take a random walk; the magnitudes here are held by decay."""
    w = {"kernel": jnp.asarray(0.1 * RNG.standard_normal((16, 16)), dtype)}
    grads = {"kernel": jnp.asarray(RNG.standard_normal((400, 16, 16)), dtype)}
    sizes = {}
    for make in (fo.muon, fo.muown):
        tx = make(0.02, consistent_rms=0.2, weight_decay=0.5)
        path, _, _ = train_compiled(tx, w, grads)
        sizes[make] = float(jnp.linalg.norm(path["kernel"][-1].astype("float32")))
    assert sizes[fo.muown] < 0.7 * sizes[fo.muon]


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"params\['b'\] has shape \(3,\)"):
        fo.weight_normalized(fo.sgd(0.1), fo.sgd(0.1)).init({"b": jnp.ones(3)})
