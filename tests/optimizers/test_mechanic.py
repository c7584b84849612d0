"""Mechanic beyond the table of cases: Optax's numbers where these have digits, and steps too small to be seen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import functional_opt as fo

from ..helpers import assert_close, make_grads, make_params, train_compiled


def test_optax_parity_in_float64():
    """To 1e-6: Optax divides by S + eps, S about 0.1."""
    with jax.enable_x64(True):
        params, grads = (
            jax.tree.map(lambda x: np.asarray(x, np.float64), t) for t in (make_params(), make_grads(50))
        )
        ours, _, _ = train_compiled(fo.mechanize(fo.adam(0.1), s_init=0.1), params, grads)
        theirs, _, _ = train_compiled(optax.contrib.mechanize(optax.adam(0.1), s_init=0.1), params, grads)
        assert_close(ours, theirs, rtol=1e-6)


def test_a_start_below_the_last_digit_of_the_params_is_left():
    """Steps of 1e-9 do not change params of 3; their sum is kept, and the factor grows until they do."""
    tx, w = fo.mechanize(fo.sgd(1e-3)), jnp.array([3.0, -3.0])

    @jax.jit
    def train(w):
        def step(_, carry):
            w, state = carry
            u, state = tx.update(2 * w, state, w)
            return w + u, state

        return jax.lax.fori_loop(0, 300, step, (w, tx.init(w)))[0]

    first, _ = tx.update(2 * w, tx.init(w), w)
    assert jnp.all(w + first == w) and jnp.all(jnp.abs(train(w)) < 0.1)
