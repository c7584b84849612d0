"""reduce_on_plateau: when the scale falls."""

import jax
import numpy as np
import optax
import pytest

import functional_opt as fo
from functional_opt.core.queries import get


def scales(tx, losses):
    state, seen, update = tx.init(None), [], jax.jit(tx.update)
    for loss in losses:
        u, state = update({"w": 1.0}, state, value=loss)
        seen.append(float(u["w"]))
    return seen


@pytest.mark.parametrize(
    "args",
    [
        {"patience": 2, "factor": 0.5, "cooldown": 3},
        {"patience": 2, "factor": 0.5, "accumulation_size": 3, "min_scale": 0.2},
        {"patience": 1, "factor": 0.9, "rtol": 0.1, "atol": 0.05, "cooldown": 1},
    ],
)
def test_optax_parity(args):
    losses = 1 + np.exp(-np.arange(40) / 5) + 0.05 * np.random.default_rng(0).standard_normal(40)
    ours = scales(fo.reduce_on_plateau(**args), losses)
    np.testing.assert_allclose(ours, scales(optax.contrib.reduce_on_plateau(**args), losses), rtol=1e-6)
    assert ours[-1] < 1


def test_negative_losses_have_plateaus_too():
    assert scales(fo.reduce_on_plateau(factor=0.5, patience=2), [-1.0, -2.0, -2.0, -2.0]) == [1.0, 1.0, 1.0, 0.5]


def test_cooldown_and_no_patience():
    tx = fo.reduce_on_plateau(factor=0.5, patience=0, cooldown=2)
    assert scales(tx, [1.0] * 6) == [1.0, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_in_a_chain_it_slows_the_optimizer():
    tx, w = fo.chain(fo.sgd(0.5), fo.reduce_on_plateau(factor=0.5, patience=1)), {"w": 1.0}
    state = tx.init(w)
    step = jax.jit(tx.update)
    for _ in range(2):
        u, state = step({"w": 1.0}, state, w, value=3.0)
    assert u["w"] == -0.25 and get(state, "scale") == 0.5


def test_the_loss_must_be_given():
    with pytest.raises(ValueError, match="reduce_on_plateau needs the loss: call update.*value=loss"):
        scales(fo.reduce_on_plateau(), [None])


@pytest.mark.parametrize("args", [{"factor": 1.0}, {"patience": -1}, {"accumulation_size": 0}, {"rtol": 2.0}])
def test_ranges(args):
    with pytest.raises(ValueError, match=f"{next(iter(args))} must be in"):
        fo.reduce_on_plateau(**args)
