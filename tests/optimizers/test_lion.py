"""Lion beyond the table of cases."""

import jax.numpy as jnp
import pytest

import functional_opt as fo

from ..helpers import assert_close


@pytest.mark.parametrize("b1, b2", [(0.9, 0.99), (0.9, 0.9), (0.9, 0.5), (0.9, 0.0), (0.0, 0.0), (0.0, 0.9)])
def test_the_direction_is_from_the_old_mean_whatever_the_decays(b1, b2):
    """Smooth, so that its size shows; from the new mean only where that lies between the old one and g."""
    tx, m, g = fo.scale_by_lion(b1, b2, mode="smooth"), jnp.array([0.3, -0.2, 0.0]), jnp.array([0.5, 0.9, 0.1])
    u, state = tx.update(g, tx.init(g)._replace(mu=m))
    assert_close(u, jnp.tanh(b1 * m + (1 - b1) * g), rtol=2e-6)
    assert_close(state.mu, b2 * m + (1 - b2) * g, rtol=2e-6)
