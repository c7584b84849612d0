"""scale_by_trust_ratio: weights of zero, from which a share would never lead away."""

import jax.numpy as jnp
import pytest

from functional_opt import scale_by_trust_ratio

from ...helpers import assert_close


def test_weights_of_zero_take_the_update_as_it_is():
    tx, g, zero = scale_by_trust_ratio(trust_coefficient=0.1), jnp.array([3.0, 4.0]), jnp.zeros(2)
    assert_close(tx.update(g, tx.init(zero), zero)[0], g)
    assert_close(tx.update(zero, tx.init(g), g)[0], zero)


@pytest.mark.parametrize("w", [[0.0, 0.0], [0.6, 0.8], [0.0, 0.5]])
def test_weights_count_with_the_least_norm(w):
    tx, g, w = scale_by_trust_ratio(min_norm=2.0, trust_coefficient=0.1), jnp.array([3.0, 4.0]), jnp.array(w)
    assert_close(tx.update(g, tx.init(w), w)[0], jnp.array([0.12, 0.16]), rtol=1e-6)
