"""gradient_noise_scale: the estimate finds what is there, in each of the ways to feed it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

TRUE_NORM, TRUE_VARIANCE = 2.0, 60.0  # |G|² = 4, S = 60
MEAN, SIZE = jnp.full(15, TRUE_NORM / 15**0.5), 15


def examples(key, n):
    """Gradients of single examples, whose variances sum to S."""
    return MEAN + jax.random.normal(key, (n, SIZE)) * (TRUE_VARIANCE / SIZE) ** 0.5


def run(tx, step, n, steps=1500):
    """The state after gradients of n examples a step."""

    def body(state, key):
        return step(tx, state, examples(key, n)), None

    keys = jax.random.split(jax.random.key(0), steps)
    return jax.jit(lambda: jax.lax.scan(body, tx.init(jnp.zeros(SIZE)), keys)[0])()


def with_microbatches(tx, state, batch):
    def part(x):
        g = jnp.mean(x, 0)
        return g, fo.global_norm(g) ** 2

    g, small = fo.microbatching.microbatch(part, 0, 4, fo.microbatching.AccumulationType.MEAN)(batch)
    return tx.update(g, state, small_squared_norm=small)[1]


def on_devices(tx, state, batch):
    def one(x):
        g = jnp.mean(x, 0)
        small = jax.lax.pmean(fo.global_norm(g) ** 2, "device")
        return tx.update(g, state, small_squared_norm=small)[1]

    parts = batch.reshape(8, 4, SIZE)
    return jax.vmap(one, axis_name="device", out_axes=None)(parts)


def in_mini_steps(tx, state, batch):
    for x in batch.reshape(8, 4, SIZE):
        g = jnp.mean(x, 0)
        _, state = tx.update(g, state, small_squared_norm=fo.global_norm(g) ** 2)
    return state


NOISE = fo.gradient_noise_scale(4, 32, decay=0.998)


@pytest.mark.parametrize(
    "tx, step",
    [
        (NOISE, with_microbatches),
        (fo.chain(fo.aggregate("device"), NOISE), on_devices),
        (fo.MultiSteps(fo.chain(NOISE, fo.sgd(0.1)), 8), in_mini_steps),
    ],
    ids=["microbatches", "devices", "MultiSteps"],
)
def test_finds_the_noise_scale(tx, step):
    assert fo.noise_scale(run(tx, step, 32)) == pytest.approx(TRUE_VARIANCE / TRUE_NORM**2, rel=0.15)


def test_metrics_and_what_is_not_known():
    tx = fo.with_metrics(fo.chain(fo.gradient_noise_scale(1, 2), fo.sgd(0.1)))
    state = tx.init(jnp.zeros([]))
    assert jnp.isnan(fo.noise_scale(state))
    for small in (10.0, np.inf):  # an infinite estimate is left out
        updates, state = tx.update(jnp.array(3.0), state, small_squared_norm=small)
        assert float(fo.metrics(state)["noise_scale"]) == pytest.approx(0.25)
    assert float(updates) == pytest.approx(-0.3)


@pytest.mark.parametrize(
    "attempt, message",
    [
        (lambda: fo.gradient_noise_scale(8, 8), "large_batch must be above small_batch=8, got 8"),
        (
            lambda: NOISE.update(0.0, NOISE.init(0.0)),
            r"\(updates, state, params, small_squared_norm=...\)",
        ),
        (lambda: fo.noise_scale(fo.sgd(0.1).init(0.0)), "got 0: put gradient_noise_scale in the chain"),
    ],
)
def test_errors_say_what_to_do(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()
