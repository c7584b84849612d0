"""apollo: its projections, and the limit on the growth of its updates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import functional_opt as fo

from ..helpers import assert_close, train_eagerly

G = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8)), "float32")


def stacked(*grads):
    return jnp.stack(grads)


@pytest.mark.parametrize("scaling", ["channel", "tensor"])
def test_the_shorter_side_is_projected(scaling):
    tx = fo.scale_by_apollo(2, scaling=scaling)
    wide, state = train_eagerly(tx, G, stacked(G))
    tall, tall_state = train_eagerly(tx, G.T, stacked(G.T))
    np.testing.assert_allclose(wide, tall.T, rtol=1e-5)
    assert (state.mu.shape, tall_state.nu.shape) == ((2, 8), (8, 2))
    ratios = np.unique((wide / G).round(4))
    assert len(ratios) == (8 if scaling == "channel" else 1)


def test_a_projection_lasts_for_its_steps_and_keys_differ():
    start = functools.partial(fo.scale_by_apollo, 1, 2, b1=0.0, b2=0.0, max_norm_growth=None)
    one, two, three, four = (train_eagerly(start(), G, stacked(*[G] * 4), steps=n)[0] for n in (1, 2, 3, 4))
    assert_close(one, two)
    assert_close(three, four)
    assert jnp.max(jnp.abs(one - three)) > 0.1
    assert jnp.max(jnp.abs(one - train_eagerly(start(key=1), G, stacked(G))[0])) > 0.1
    same = start(key=jax.random.key(0)), start(key=jax.random.PRNGKey(0))
    assert all(jnp.array_equal(one, train_eagerly(tx, G, stacked(G))[0]) for tx in same)


def test_directions_grow_by_a_hundredth_at_most_but_from_zero():
    def norms(**args):
        """Before the correction of the means, which comes after the limit."""
        after = (train_eagerly(fo.scale_by_apollo(2, **args), G, stacked(0 * G, G, G), steps=n)[0] for n in (1, 2, 3))
        return [float(fo.global_norm(u)) * (1 - 0.9**n) / (1 - 0.999**n) ** 0.5 for n, u in enumerate(after, 1)]

    limited, free = norms(), norms(max_norm_growth=None)
    assert limited[0] == 0 and limited[1] == free[1] > 0.1
    np.testing.assert_allclose(limited[2], 1.01 * limited[1], rtol=1e-5)
    assert free[2] > 1.1 * free[1]


def test_the_projected_side_may_be_sharded_in_its_type():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    tx = fo.apollo(0.1, rank=2)
    expected, _ = tx.update(G, tx.init(G), G)
    with jax.set_mesh(mesh):
        g = jax.device_put(G, NamedSharding(mesh, PartitionSpec("data", None)))
        state = tx.init(g)
        updates, after = jax.jit(tx.update)(g, state, g)
    np.testing.assert_allclose(updates, expected, rtol=1e-5)
    assert jax.typeof(updates).sharding.spec == PartitionSpec("data", None)
    assert jax.typeof(after[0].mu).sharding == jax.typeof(state[0].mu).sharding
