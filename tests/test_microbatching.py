"""Functions on one micro-batch after the other: the numbers of the whole batch, of Optax, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from functional_opt import microbatching as ours
from functional_opt.microbatching import AccumulationType, Accumulator, micro_grad, micro_vmap, microbatch

from .helpers import assert_close

X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), "float32")
W, Y = jnp.array([1.0, -2.0, 0.5]), jnp.arange(8.0)


def loss(w, x, y):
    return 0.5 * jnp.mean((x @ w - y) ** 2)


@pytest.mark.parametrize("size", [1, 2, 8, None])
def test_means_and_sums_are_those_of_the_whole_batch(size):
    f = jax.jit(microbatch(jax.value_and_grad(loss), (1, 2), size, AccumulationType.MEAN))
    assert_close(f(W, X, Y), jax.value_and_grad(loss)(W, X, Y), rtol=1e-5)
    total = microbatch(lambda x, *, y: jnp.sum(x) + jnp.sum(y), 0, size, argnames="y", in_axes=(1, 0))(X.T, y=Y)
    np.testing.assert_allclose(total, X.sum() + Y.sum(), rtol=1e-5)


def test_the_numbers_of_optax():
    def results(o):
        kind = o.AccumulationType
        rows = o.micro_vmap(lambda x: (x**2, x.sum()), microbatch_size=2, accumulator=(kind.MEAN, kind.CONCAT))(X)
        grads = o.micro_grad(
            loss, batch_argnums=(1, 2), microbatch_size=4, accumulator=kind.MEAN,
            transform_fn=lambda g: (g, g**2), metrics_fn=jnp.linalg.norm,
        )(W, X, Y)  # fmt: skip
        return rows, grads[0], tuple(grads[1])

    assert_close(results(ours), results(optax.microbatching), rtol=1e-5)


def test_some_of_the_micro_batches_only():
    f = jax.jit(
        lambda n: microbatch(
            lambda y: (y, jnp.mean(y), jnp.sum(y)),
            0,
            2,
            (AccumulationType.CONCAT, AccumulationType.RUNNING_MEAN, AccumulationType.SUM),
            num_real_microbatches=n,
        )(Y)
    )
    rows, mean, total = f(3)
    assert rows.tolist() == [0, 1, 2, 3, 4, 5, 0, 0] and mean == 2.5 and total == 15


def test_an_accumulator_of_ones_own():
    largest = Accumulator(
        init=lambda s: jnp.full(s.shape, -jnp.inf, s.dtype),
        update=lambda c, x, i: jnp.maximum(c, x),
        finalize=lambda c: c,
        aggregate=lambda x: x.max(0),
    )
    assert_close(micro_vmap(lambda x: x, microbatch_size=2, accumulator=largest)(X), X.max(0))


def test_sums_of_16_bits_are_taken_in_float32():
    total = microbatch(jnp.sum, 0, 1)(jnp.ones(512, "bfloat16"))
    assert total == 512 and total.dtype == jnp.bfloat16


def test_aux_and_no_batch_dimension():
    grads, rest = micro_grad(lambda w, x: (w @ x, x[0]), has_aux=True, keep_batch_dim=False)(W, X)
    assert_close(grads, X.sum(0), rtol=1e-5, atol=1e-6)
    assert_close((rest.values, rest.aux), (X @ W, X[:, 0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [3, 16])
def test_a_size_that_does_not_divide(size):
    with pytest.raises(ValueError, match=f"microbatch_size={size} must divide the rows of the batch, got 8"):
        microbatch(jnp.sum, 0, size)(Y)
    with pytest.raises(ValueError, match="out_axes must be 0, got 1"):
        micro_vmap(jnp.sum, out_axes=1)
