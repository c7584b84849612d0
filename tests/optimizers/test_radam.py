"""RAdam beyond the table of cases."""

import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo


@pytest.mark.parametrize("threshold, u", [(7.0, 1.0), (np.nextafter(np.float32(7), np.float32(8)), 2.0)])
def test_a_step_is_adaptive_from_the_threshold_on(threshold, u):
    """After a million steps ρ is its limit, (1 + b2)/(1 − b2) = 7, and r = 1; v = 4 stays."""
    tx = fo.scale_by_radam(b1=0.0, b2=0.75, eps=0.0, threshold=threshold)
    state = tx.init(jnp.zeros([]))._replace(count=jnp.int32(10**6), nu=jnp.float32(4.0))
    assert float(tx.update(jnp.float32(2.0), state)[0]) == u
