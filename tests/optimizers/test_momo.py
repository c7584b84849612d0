"""MoMo beyond the table of cases: a lower bound that adapts, the loss it needs, and a bound on the step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ..conformance import references_free as ref

RULES = {"momo": (fo.momo, ref.momo), "momo_adam": (fo.momo_adam, ref.momo_adam)}
each_rule = pytest.mark.parametrize("name", RULES)


@each_rule
def test_a_lower_bound_that_adapts_is_the_papers(name):
    make, reference = RULES[name]
    args = {"learning_rate": 0.5, "lower_bound": 5.0, "weight_decay": 0.1, "adapt_lower_bound": True}
    rng = np.random.default_rng(0)
    start, grads = 3 + rng.standard_normal(4), rng.standard_normal((30, 4))
    with jax.enable_x64(True):

        @jax.jit
        def step(w, state, g):
            u, state = make(**args).update(g, state, w, value=jnp.sum(w**2) / 2)
            return w + u, state

        w = jnp.asarray(start)
        state, bounds = make(**args).init(w), []
        for g, expected in zip(grads, reference(start, grads, **args), strict=True):
            w, state = step(w, state, jnp.asarray(g))
            np.testing.assert_allclose(w, expected, rtol=1e-10)
            bounds.append(float(state.lb))
    assert bounds[0] > min(bounds) >= 5.0


@each_rule
def test_steps_of_a_rate_far_too_large_descend(name):
    def loss(w):
        return jnp.sum(jnp.array([1.0, 4.0]) * w**2)

    tx, w = RULES[name][0](1e3), jnp.array([3.0, -2.0])
    state = tx.init(w)
    step = jax.jit(functools.partial(tx.update))
    for _ in range(100):
        value, g = jax.value_and_grad(loss)(w)
        u, state = step(g, state, w, value=value)
        w = w + u
    assert loss(w) < 0.01 * 25


@each_rule
def test_the_loss_must_be_given(name):
    tx, w = RULES[name][0](), jnp.ones(2)
    with pytest.raises(ValueError, match=f"{name} needs the loss: call update.*value=loss"):
        fo.chain(tx).update(w, (tx.init(w),), w)
    with pytest.raises(ValueError, match=f"{name} needs the params"):
        tx.update(w, tx.init(w), value=1.0)
