"""L-BFGS, line searches and the optimizers that find their own step size, 300 steps after they have converged.

There the changes of params and gradients are rounding errors or underflow, and the rules divide by products of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ..helpers import assert_finite

BACKTRACKING = fo.scale_by_backtracking_linesearch(20)


def until_then(rate=1.0):
    """Falls to 0 over the steps before those that are looked at: rules like Adam's do not settle otherwise."""
    return fo.cosine_decay_schedule(rate, 500)


RULES = {
    "lbfgs": fo.lbfgs(),
    "lbfgs-backtracking": fo.lbfgs(linesearch=BACKTRACKING),
    "lbfgs-plain": fo.lbfgs(linesearch=None),
    "zoom": fo.chain(fo.sgd(1.0), fo.scale_by_zoom_linesearch(15)),
    "backtracking": fo.chain(fo.sgd(1.0), BACKTRACKING),
    "polyak": fo.polyak_sgd(),
    "momo": fo.contrib.momo(1.0),
    "momo-adapted": fo.contrib.momo(until_then(), adapt_lower_bound=True),
    "momo_adam": fo.contrib.momo_adam(until_then(0.1)),
    "dog": fo.contrib.dog(init_step=("distance", 0.1)),
    "dowg": fo.contrib.dowg(),
    "distance_over_gradients": fo.chain(fo.scale_by_distance_over_gradients(0.01), fo.scale(-1.0)),
    "prodigy": fo.contrib.prodigy(until_then(), estim_lr0=1e-3),
    "dadapt_adamw": fo.contrib.dadapt_adamw(until_then(), estim_lr0=1e-3),
    "mechanize": fo.contrib.mechanize(fo.sgd(until_then(0.1)), weight_decay=0.0),
    "cocob": fo.contrib.cocob(),
}
SIDES = np.array([[1.0, 0.5], [0.5, 2.0], [0.25, 0.125]])
SOLUTION = np.array([1.0, -1.0])


def losses(tx, sides, goal, steps):
    """The loss before each step on least squares with minimum 0, and the last params and state."""

    def loss(w):
        return jnp.sum((sides @ w["w"] - goal) ** 2) + jnp.sum(w["b"] ** 2)

    def step(carry, _):
        w, state = carry
        value, grad = jax.value_and_grad(loss)(w)
        u, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=loss)
        return (fo.apply_updates(w, u), state), value

    w = {"w": jnp.asarray([0.75, -0.25], sides.dtype), "b": jnp.asarray(0.5, sides.dtype)}
    last, found = jax.lax.scan(step, (w, tx.init(w)), length=steps)
    return found, last


CASES = [(name, *kind) for name in RULES for kind in (("float32", True), ("float16", False))]
CASES += [("lbfgs", "float32", False), ("lbfgs", "float16", True)]


@pytest.mark.parametrize("name, dtype, x64", CASES)
def test_the_loss_gets_no_higher(name, dtype, x64):
    """In float32 and float16, with x64 and without, at the origin, where all underflows, and away from it.

    A weight that is right but for its last digit leaves a loss of Σ(ε·|a|·|w|)², here up to 30·ε², and each of the
    rules may end on any of the neighbours: that is the tolerance. Mechanic's factor goes on swinging about its best.
    MoMo*'s lower bound rises to the loss where float16 rounds steps to nothing, and there it stops: how far down that
    is depends on how the processor rounds.
    """
    with jax.enable_x64(x64):
        run = jax.jit(jax.vmap(lambda sides, goal: losses(RULES[name], sides, goal, 800), (None, 0)))
        found, last = run(SIDES.astype(dtype), np.outer([0.0, 1.0], SIDES @ SOLUTION).astype(dtype))
    assert_finite((found, last))
    found, tolerance = np.asarray(found, float), 30 * float(jnp.finfo(dtype).eps) ** 2
    start, ends, bound = found[:, 0], found[:, 500:], found[:, 500]
    bound = np.maximum(bound, start / 30) if name == "mechanize" else bound + tolerance
    assert np.all(ends.max(1) <= bound)
    assert np.all(bound < start / (3 if (name, dtype) == ("momo-adapted", "float16") else 10))
