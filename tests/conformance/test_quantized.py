"""Every optimizer with its slots in 8 bits, beside float32: gradients of sizes that differ by 10⁶ within a block.

A code is within 1/8 of a first moment and 1/10 of a second one, so that one storing changes an update by at most
9/8 / √0.9 = 1.19. What a mean keeps of the steps before is rounded again at each: updates are held to twice.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo
from functional_opt.core.slots import slots_of

from .cases import OPTIMIZERS

STEPS, SHAPE = 100, (16, 32)
ALSO = ("adafactor-factored", "adafactor-plain", "sophia-loose", "adadelta-decay")


def has_codes(case):
    state = jax.eval_shape(case.tx().init, {"w": jax.ShapeDtypeStruct(SHAPE, "float32")})
    return any(place.slot is not None and place.slot.bits <= 8 for place in slots_of(state))


def example():
    """Params, and gradients of sizes from 1e-6 to 1 with some noise; a quarter changes between 1 and 1e-3."""
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.permutation(np.linspace(-6, 0, 512)).reshape(SHAPE)
    sign, noise = rng.choice([-1, 1], SHAPE), rng.standard_normal((STEPS, *SHAPE))
    steady = sizes * (1 + 0.3 * noise)
    turns = np.where(np.arange(STEPS) % 2, 1e-3, 1.0)[:, None, None]
    grads = sign * np.where(rng.random(SHAPE) < 0.25, turns, steady)
    params = 3 + 0.3 * rng.standard_normal(SHAPE)
    return {"w": jnp.asarray(params, "float32")}, {"w": jnp.asarray(grads, "float32")}


PARAMS, GRADS = example()


@jax.jit
def side_by_side(exact, params, grads):
    """The updates in float32 and in 8 bits at each step, at the same params."""
    coded = fo.quantize_state(exact, min_size=0)

    def step(carry, g):
        params, state, codes = carry
        u, state = exact.update(g, state, params)
        v, codes = coded.update(g, codes, params)
        params = fo.apply_updates(params, jax.tree.map(lambda x: 1e-3 * x, u))
        return (params, state, codes), (u["w"], v["w"])

    return jax.lax.scan(step, (params, exact.init(params), coded.init(params)), grads)[1]


@pytest.mark.parametrize(
    "case", [c for c in OPTIMIZERS if ("-" not in c.name or c.name in ALSO) and has_codes(c)], ids=str
)
def test_8_bits_beside_float32(case):
    exact, coded = map(np.asarray, side_by_side(case.tx(), PARAMS, GRADS))
    there = np.isfinite(exact).all(axis=(1, 2)) & (np.abs(exact).max(axis=(1, 2)) < 1e6)
    exact, coded = exact[there], coded[there]
    largest = np.abs(exact).max(axis=(1, 2))
    assert len(exact) > 10 and np.isfinite(coded).all()
    assert np.all(np.abs(coded).max(axis=(1, 2)) <= 2 * largest)
    errors, sizes = (np.linalg.norm(x.reshape(len(x), -1), axis=1) for x in (coded - exact, exact))
    assert np.all(errors <= 0.5 * sizes)
