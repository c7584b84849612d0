"""Per-example clipping: numbers of Optax, zeros, trees, and what has no examples."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from functional_opt import per_example_global_norm_clip, per_example_layer_norm_clip

from ...helpers import assert_close

RNG = np.random.default_rng(0)
GRADS = [RNG.standard_normal((4, 3)).astype("float32"), RNG.standard_normal((4, 2, 5)).astype("float32")]


@pytest.mark.parametrize("bound", [0.0, 1.5, 3.0, np.inf])
def test_the_numbers_of_optax(bound):
    grads = [jnp.asarray(g) for g in GRADS]
    total, clipped = per_example_global_norm_clip(grads, bound)
    expected, expected_clipped = optax.per_example_global_norm_clip(grads, bound)
    assert_close(total, expected, rtol=1e-5, atol=1e-6)
    assert int(clipped) == int(expected_clipped)
    for uniform in (True, False):
        actual = per_example_layer_norm_clip(grads, bound, uniform)
        assert_close(actual, optax.per_example_layer_norm_clip(grads, bound, uniform), rtol=1e-5, atol=1e-6)


def test_no_example_counts_for_more_than_the_bound():
    for clip in (per_example_global_norm_clip, per_example_layer_norm_clip):
        for i in range(4):
            one, _ = clip([g[i : i + 1] for g in GRADS], 0.5)
            assert optax.tree.norm(one) <= 0.5 * (1 + 1e-6)


def test_zero_gradients_and_a_tree():
    total, clipped = per_example_global_norm_clip({"a": jnp.zeros((3, 2)), "b": jnp.zeros(3, "bfloat16")}, 0.0)
    assert total["a"].tolist() == [0.0, 0.0] and total["b"].dtype == jnp.bfloat16 and int(clipped) == 0


def test_what_has_no_examples():
    with pytest.raises(ValueError, match=r"along axis 0 of every leaf, got shapes \[\(2, 3\), \(4,\)\]"):
        per_example_global_norm_clip([jnp.ones((2, 3)), jnp.ones(4)], 1.0)
