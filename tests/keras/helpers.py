"""Two variables with gradients for them, what an optimizer keeps, and a count of compilations.

The variables are the same in most tests, so that these share the compiled steps.
"""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from functional_opt import apply_updates, keras
from functional_opt.keras.engine.eager import jitted_step

KERNEL, BIAS = np.float32([1.0, -2.0, 3.0]), np.float32([0.5])
NAMES = ("dense/kernel", "dense/bias")


def make_variables(**kwargs):
    """A kernel of shape (3,) and a bias of shape (1,)."""
    return tuple(keras.Variable(x, name=n, **kwargs) for n, x in zip(NAMES, (KERNEL, BIAS), strict=True))


def make_gradients(steps):
    """A list, for each step, of a gradient for the kernel and one for the bias."""
    rng = np.random.default_rng(0)
    return [[rng.standard_normal(x.shape).astype(np.float32) for x in (KERNEL, BIAS)] for _ in range(steps)]


def train(opt, variables, gradients):
    """Applies the gradients of every step; returns the variables' values."""
    for grads in gradients:
        opt.apply_gradients(zip(grads, variables, strict=True))
    return [v.numpy() for v in variables]


def train_core(tx, gradients):
    """`train` in the functional core."""
    update, params = jax.jit(tx.update), dict(zip(NAMES, (KERNEL, BIAS), strict=True))
    state = tx.init(params)
    for grads in gradients:
        updates, state = update(dict(zip(NAMES, map(jnp.asarray, grads), strict=True)), state, params)
        params = apply_updates(params, updates)
    return [params[n] for n in NAMES]


def snapshot(opt, variables):
    """Copies of all that a step changes."""
    return [v.numpy() for v in variables], opt.get_slot_names(), opt.get_weights()


def assert_same(actual, expected, rtol=0.0, atol=0.0):
    """Trees of equal structure whose arrays agree: exactly, by default."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if isinstance(y, str):
            assert x == y
        else:
            np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


assert_close = lambda actual, expected: assert_same(actual, expected, rtol=1e-5, atol=1e-6)  # noqa: E731


@contextmanager
def no_compilation():
    """Fails if `apply_gradients` compiles anything within."""
    before = jitted_step._cache_size()
    yield
    assert jitted_step._cache_size() == before
