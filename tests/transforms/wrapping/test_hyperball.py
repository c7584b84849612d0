"""hyperball: norms are kept, matrix by matrix; directions of 0, matrices of 0, and their axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo


def draw(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape)


@pytest.mark.parametrize("make", [fo.adamh, fo.muonh])
def test_norms_stay_while_the_loss_falls(make):
    """A linear map with one direction to find; the bias is AdamW's."""
    x, target = draw(64, 8), draw(4, 8).T
    params = {"kernel": draw(8, 5)[:, 1:], "bias": jnp.zeros(4)}
    target = target * jnp.linalg.norm(params["kernel"]) / jnp.linalg.norm(target)

    def loss(p):
        return jnp.mean((x @ (p["kernel"] - target) + p["bias"]) ** 2)

    tx = make(fo.cosine_decay_schedule(0.1, 100))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (fo.apply_updates(params, updates), state), loss(params)

    (trained, _), losses = jax.lax.scan(step, (params, tx.init(params)), length=100)
    assert losses[-1] < 0.02 * losses[0]
    norms = [jnp.linalg.norm(p["kernel"]) for p in (params, trained)]
    np.testing.assert_allclose(*norms, rtol=1e-5)


def test_each_matrix_of_a_stack_keeps_its_own_norm():
    w = draw(3, 4, 5) * jnp.array([1.0, 2.0, 3.0])[:, None, None]
    tx = fo.hyperball(fo.identity(), 0.3)
    u, _ = tx.update(draw(3, 4, 5), tx.init(w), w)
    np.testing.assert_allclose(*(jnp.linalg.norm(x, axis=(1, 2)) for x in (w, w + u)), rtol=1e-6)
    for i in range(3):
        alone, _ = tx.update(draw(3, 4, 5)[i], tx.init(w[i]), w[i])
        np.testing.assert_allclose(u[i], alone, rtol=1e-5, atol=1e-6)


def test_other_axes():
    numbers = fo.MuonDimensionNumbers((0,), (2,))
    w, g = draw(4, 3, 5), draw(3, 4, 5).swapaxes(0, 1)
    tx = fo.hyperball(fo.identity(), 0.3, weight_dimension_numbers=numbers)
    u, _ = tx.update(g, tx.init(w), w)
    plain = fo.hyperball(fo.identity(), 0.3)
    w, g = w.swapaxes(0, 1), g.swapaxes(0, 1)
    expected, _ = plain.update(g, plain.init(w), w)
    np.testing.assert_allclose(u.swapaxes(0, 1), expected, rtol=1e-6)


@pytest.mark.parametrize("w, g", [(jnp.zeros((2, 3)), jnp.ones((2, 3))), (jnp.ones((2, 3)), jnp.zeros((2, 3)))])
def test_what_has_no_direction_stays(w, g):
    tx = fo.hyperball(fo.identity(), 0.3)
    np.testing.assert_allclose(tx.update(g, tx.init(w), w)[0], 0, atol=1e-7)


def test_only_matrices():
    with pytest.raises(ValueError, match=r"params\['b'\] has shape \(3,\), but this rule is for matrices"):
        fo.hyperball(fo.identity(), 0.1).init({"b": jnp.ones(3)})
    tx = fo.hyperball(fo.identity(), 0.1)
    with pytest.raises(ValueError, match="params"):
        tx.update(jnp.ones((2, 2)), tx.init(jnp.ones((2, 2))))


@pytest.mark.parametrize("inner", [fo.adam(0.1), fo.chain(fo.clip(1.0), fo.sgd(0.1))], ids=str)
def test_a_learning_rate_inside_is_refused(inner):
    """Its minus sign turned the direction, and so every step, uphill."""
    with pytest.raises(ValueError, match=r"inner must be a rule without a learning rate, such as scale_by_adam"):
        fo.hyperball(inner, 0.1)
