"""quantize_state: the error of codes of blocks, what is never lost, bytes, and training."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.sharding import PartitionSpec

import functional_opt as fo
from functional_opt.state import get

BLOCK = 4
SHAPES = [(), (1,), (4,), (7,), (3, 8), (5, 3), (2, 3, 5), (64, 5), (0, 4)]
each_width = pytest.mark.parametrize("bits", [8, 4])


class Slots(NamedTuple):
    mu: Any
    nu: Any


@fo.transformation
class remember(fo.GradientTransformation):
    """Gives what was stored of the gradient before, and of its absolute value."""

    def init(self, params):
        return Slots(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(self, updates, state, params=None, **extra):
        before = {"mu": state.mu["x"], "nu": state.nu["x"]}
        return before, Slots(updates, jax.tree.map(jnp.abs, updates))


@jax.jit
def twice(tx, x):
    """What is left of x after it was stored once, and again."""
    state = tx.update({"x": x}, tx.init({"x": x}))[1]
    once, _ = tx.update({"x": x}, state)
    again = [tx.update({"x": y}, tx.update({"x": y}, state)[1])[0] for y in (once["mu"], once["nu"])]
    return once, {"mu": again[0]["mu"], "nu": again[1]["nu"]}


def blocks(x):
    """Of every element, the largest of its block."""
    axis = max(x.ndim - 1, 0)
    while axis > 0 and np.prod(x.shape[axis:]) < BLOCK:
        axis -= 1
    rows = x.reshape(-1, int(np.prod(x.shape[axis:])))
    n = rows.shape[1]
    size = -(-n // -(-n // BLOCK)) if n else 1
    parts = [np.abs(rows[:, i : i + size]).max(axis=1, keepdims=True, initial=0) for i in range(0, n, size)]
    return np.concatenate([np.repeat(p, size, 1) for p in parts], 1)[:, :n].reshape(x.shape) if parts else x


numbers = st.builds(lambda n, e: np.float32(n * 10.0**e), st.integers(-99, 99), st.integers(-20, 2))


@each_width
@given(st.sampled_from(SHAPES).flatmap(lambda shape: arrays(np.float32, shape, elements=numbers)))
def test_the_error_is_a_part_of_the_block(bits, x):
    once, again = twice(fo.quantize_state(remember(), bits, block_size=BLOCK, min_size=0), x)
    largest = blocks(x)
    for name, exact in (("mu", x), ("nu", np.abs(x))):
        stored = np.asarray(once[name])
        assert stored.shape == x.shape
        assert np.all(np.abs(stored - exact) <= largest / (127 if bits == 8 else 7) * (1 + 1e-4))
        np.testing.assert_array_equal(again[name], stored)
        assert np.all(stored[largest == 0] == 0)
    assert np.all(np.asarray(once["nu"])[x != 0] > 0)


@each_width
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(bits, bad):
    x = np.ones((2, 8), np.float32)
    x[0, 1] = bad
    once, _ = twice(fo.quantize_state(remember(), bits, block_size=BLOCK, min_size=0), x)
    for stored in once.values():
        finite = np.isfinite(stored)
        assert not finite[0, :4].any() and finite[0, 4:].all() and finite[1].all()


def test_bytes():
    params = {
        "kernel": jax.ShapeDtypeStruct((1000, 512), "float32"),
        "odd": jax.ShapeDtypeStruct((64, 257), "float32"),
    }
    elements = 1000 * 512 + 64 * 257
    for bits, most in ((8, 2.1), (4, 1.1)):
        assert fo.explain(fo.quantize_state(fo.adam(1e-3), bits), params).state_bytes < most * elements


def test_small_leaves_and_params_in_the_state_are_left_alone():
    params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
    tx = fo.quantize_state(fo.schedule_free_adamw(0.1), min_size=32)
    state = tx.init(params).inner_state
    assert get(state, "nu")["kernel"].dtype == "uint8"
    assert get(state, "nu")["bias"].dtype == get(state, "z")["kernel"].dtype == "float32"


def test_own_names_of_second_moments():
    @fo.transformation
    class own(fo.GradientTransformation):
        def init(self, params):
            return {"mine": params}

        def update(self, updates, state, params=None, **extra):
            return updates, state

    for unsigned, dtype in (((), "int8"), (("mine",), "uint8")):
        tx = fo.quantize_state(own(), min_size=0, unsigned=unsigned)
        assert tx.init(jnp.ones(8)).inner_state["mine"].dtype == dtype


def test_codes_are_sharded_as_the_params():
    tx, spec = fo.quantize_state(fo.adam(0.1), min_size=0), PartitionSpec("data")
    state = fo.tree.map_params(tx, lambda _, s: s, tx.init({"w": jnp.ones((4, 8))}), {"w": spec})
    assert state.inner_state[0].mu == state.inner_state[0].nu == {"w": spec}


def test_trains_as_float32_does():
    """Logistic regression whose features differ by 10⁴ in size, so that second moments in a block do by 10⁸."""
    rng = np.random.default_rng(0)
    sizes = np.logspace(-2, 2, 64)
    x, y = rng.standard_normal((256, 64)) * sizes, rng.integers(0, 8, 256)

    def loss(w):
        return jnp.mean(-jax.nn.log_softmax(jnp.asarray(x, "float32") @ w)[jnp.arange(256), y])

    @jax.jit
    def final(tx):
        def step(_, carry):
            w, state = carry
            updates, state = tx.update(jax.grad(loss)(w), state, w)
            return fo.apply_updates(w, updates), state

        w = jnp.zeros((64, 8))
        return loss(jax.lax.fori_loop(0, 300, step, (w, tx.init(w)))[0])

    adam = fo.adam(0.01)
    exact = final(adam)
    assert exact < 1.6 < loss(jnp.zeros((64, 8)))
    for bits, worse in ((8, 1.02), (4, 1.1)):
        assert final(fo.quantize_state(adam, bits, block_size=256, min_size=0)) < worse * exact


@pytest.mark.parametrize("bits", [1, 16])
def test_refuses_other_widths(bits):
    with pytest.raises(ValueError, match="bits must be 8 or 4"):
        fo.quantize_state(fo.adam(0.1), bits)
