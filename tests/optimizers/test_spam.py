"""SPAM with a density: which elements have slots and move, for how long, and where the slots lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import functional_opt as fo

from ..helpers import assert_close

W = jnp.zeros((16, 12))


def moved(tx, steps, params=W):
    """Which elements each of the steps moves."""
    state, step, found = tx.init(params), jax.jit(tx.update), []
    for _ in range(steps):
        updates, state = step(jnp.ones_like(params), state, params)
        found.append(np.asarray(updates != 0))
    return found


@pytest.mark.parametrize("density, columns", [(0.25, 3), (0.5, 6), (0.7, 8), (0.01, 1), (1.0, 12)])
def test_a_part_of_each_row_has_slots(density, columns):
    params = {"w": W, "stack": jnp.zeros((2, 3, 12)), "bias": jnp.zeros(12)}
    tx = fo.scale_by_spam(density=density)
    state = tx.init(params)
    for slot in (state.mu, state.nu):
        assert jax.tree.map(jnp.shape, slot) == {"w": (16, columns), "stack": (2, 3, columns), "bias": (12,)}
    assert (state.rng_key is None) == (density == 1)
    assert {*np.sum(moved(tx, 1)[0], 1)} == {columns}


def test_a_choice_lasts_from_one_reset_to_the_next():
    masks = moved(fo.scale_by_spam(density=0.5, reset_interval=3), 9)  # with resets at steps 3, 6 and 9
    firsts = [0, 0, 2, 2, 2, 5, 5, 5, 8]
    assert all(np.array_equal(mask, masks[first]) for mask, first in zip(masks, firsts, strict=True))
    assert all(0.3 < np.mean(masks[i] != masks[j]) < 0.7 for i, j in ((0, 2), (2, 5), (5, 8)))


def test_every_element_is_chosen_alike_and_leaves_and_keys_choose_apart():
    share = np.mean(moved(fo.scale_by_spam(density=0.3, reset_interval=1), 300), axis=0)
    assert np.all(abs(share - np.mean(share)) < 0.15) and abs(np.mean(share) - 4 / 12) < 1e-6

    def mask(key, name):
        tx = fo.scale_by_spam(density=0.5, key=key)
        return np.asarray(tx.update({name: W + 1}, tx.init({name: W}))[0][name] != 0)

    others = [mask(1, "a"), mask(0, "b")]
    assert all(np.mean(mask(0, "a") != other) > 0.3 for other in others)
    assert np.array_equal(mask(None, "a"), mask(jax.random.key(0), "a"))


def test_moments_start_again_with_a_choice():
    """What is left of the elements before would otherwise be taken for that of the new ones."""
    tx = fo.scale_by_spam(density=0.5, reset_interval=2, warmup_steps=0, threshold=np.inf)
    state = tx.init(W)
    for i in range(2):
        _, state = tx.update(jnp.full_like(W, 100.0**i), state, W)
    assert_close(state.mu, np.full((16, 6), 10.0), rtol=1e-6)


def test_groups_give_other_leaves_another_density():
    tx = fo.groups(fo.spam(0.1, density=0.25), {"embed": {"density": 1.0}})
    params = {"embed": W, "w": W}
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert [int(jnp.sum(u != 0)) for u in updates.values()] == [16 * 12, 16 * 3]
    assert fo.from_config(fo.to_config(tx)) == tx


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [("data", None), (None, "data")])
def test_slots_are_split_like_the_rows(kind, spec):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    tx = fo.spam(0.1, density=0.5)
    g = jnp.asarray(np.random.default_rng(0).standard_normal(W.shape), "float32")
    expected = tx.update(g, tx.init(W), W)
    with jax.set_mesh(mesh):
        params, grads = (jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec))) for x in (W, g))
        updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    assert_close((updates, state), expected, rtol=1e-6)
    assert updates.sharding.is_equivalent_to(params.sharding, 2)
    if spec[0]:
        assert state[0].mu.sharding.spec[0] == "data"


def test_quantized_slots_and_checkpoints():
    tx = fo.quantize_state(fo.spam(0.1, density=0.5), min_size=1)
    updates, state = tx.update(W + 1, tx.init(W), W)
    assert state.inner_state[0].mu.shape == (16, 6) and state.inner_state[0].mu.dtype == jnp.int8
    _, _, back = fo.from_arrays(*fo.to_arrays(tx, {"w": W}, state_of(tx)))
    assert_close(back, state_of(tx))


def state_of(tx):
    return tx.update({"w": W + 1}, tx.init({"w": W}), {"w": W})[1]
