"""Polyak's step: its length, its bounds, the loss that it needs, through every combinator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ..helpers import assert_close, train_eagerly

W = {"a": jnp.array([3.0, -1.0]), "b": jnp.array(2.0)}
G = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(-2.0)}  # its squared norm is 9


def step(value, **args):
    """The step size that was taken: the update over the gradient, the same in every element."""
    tx = fo.polyak_sgd(**args)
    updates, _ = tx.update(G, tx.init(W), W, value=value)
    sizes = np.concatenate(
        [np.ravel(-u / g) for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(G), strict=True)]
    )
    np.testing.assert_allclose(sizes, sizes[0], rtol=1e-6)
    return sizes[0]


@pytest.mark.parametrize(
    "value, args, expected",
    [
        (3.0, {}, 3 / 9),
        (3.0, {"f_min": 1.0, "eps": 1.0}, 2 / 10),
        (3.0, {"max_learning_rate": 0.1}, 0.1),
        (3.0, {"scaling": 0.5}, 0.5 * 3 / 9),
        (3.0, {"scaling": lambda count: 0.5}, 0.5 * 3 / 9),
        (-3.0, {}, -3 / 9),
        (-3.0, {"variant": "sps+"}, 0.0),
    ],
)
def test_step_size(value, args, expected):
    np.testing.assert_allclose(step(value, **args), expected, rtol=1e-6)


def test_zero_gradient_is_no_step():
    zeros = jax.tree.map(jnp.zeros_like, G)
    updates, _ = fo.polyak_sgd().update(zeros, fo.polyak_sgd().init(W), W, value=1.0)
    assert_close(updates, zeros)


def test_finds_the_minimum_of_a_quadratic():
    """With the exact f_min and no bound on the step, in the time that the curvatures allow."""
    tx = fo.polyak_sgd(max_learning_rate=10.0, f_min=1.0)

    def loss(w):
        return 1 + 3 * jnp.sum(w["a"] ** 2) + w["b"] ** 2

    @jax.jit
    def run(w):
        def body(_, carry):
            w, state = carry
            value, grads = jax.value_and_grad(loss)(w)
            updates, state = tx.update(grads, state, w, value=value)
            return fo.apply_updates(w, updates), state

        return jax.lax.fori_loop(0, 30, body, (w, tx.init(w)))[0]

    assert loss(run(W)) < 1 + 1e-6


@pytest.mark.parametrize(
    "outer",
    [
        lambda tx: fo.chain(fo.identity(), tx),
        lambda tx: fo.named_chain(("polyak", tx)),
        lambda tx: fo.masked(tx, True),
        lambda tx: fo.partition({"all": tx}, "all"),
        lambda tx: fo.MultiSteps(tx, 1),
        lambda tx: fo.apply_if_finite(tx, 3),
        lambda tx: fo.GradientTransformation(*tx),
    ],
    ids=["chain", "named_chain", "masked", "partition", "MultiSteps", "apply_if_finite", "pair"],
)
def test_the_loss_gets_through(outer):
    tx, grads = fo.polyak_sgd(), jax.tree.map(lambda g: g[None], G)
    updates, _ = train_eagerly(outer(tx), W, grads, value=jnp.array(3.0))
    assert_close(updates, train_eagerly(tx, W, grads, value=jnp.array(3.0))[0])


def test_refuses():
    tx = fo.scale_by_polyak()
    with pytest.raises(ValueError, match="needs the loss: call update.*value=loss"):
        tx.update(G, tx.init(W), W)
    with pytest.raises(ValueError, match="variant must be 'sps' or 'sps\\+', got 'max'"):
        fo.polyak_sgd(variant="max")
