"""stable_adamw: its decay, which stands in the rule."""

import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo


def test_decay_follows_its_mask_and_its_schedule():
    tx = fo.stable_adamw(1.0, weight_decay=lambda count: 0.1 * count, mask={"b": False, "w": True})
    params = {"b": jnp.ones(2), "w": jnp.ones(2)}
    grads = {"b": jnp.zeros(2), "w": jnp.zeros(2)}
    state = tx.init(params)
    for expected in (0.0, -0.1, -0.2):
        updates, state = tx.update(grads, state, params)
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-6)
        np.testing.assert_array_equal(updates["b"], 0.0)


def test_a_group_decays_whatever_the_mask_says():
    tx = fo.groups(fo.stable_adamw(1.0, mask={"b": False, "w": True}), {"/b": {"weight_decay": 0.5}})
    params = {"b": jnp.ones(2), "w": jnp.ones(2)}
    updates, _ = tx.update({"b": jnp.zeros(2), "w": jnp.zeros(2)}, tx.init(params), params)
    np.testing.assert_allclose(updates["b"], -0.5)
    np.testing.assert_allclose(updates["w"], -0.01, rtol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="rule 'c' matches no leaf"):
        fo.stable_adamw(1.0, mask=fo.PathRules({"c": False})).init({"w": jnp.ones(2)})
    tx = fo.scale_by_stable_adamw(weight_decay=0.1)
    with pytest.raises(ValueError, match="scale_by_stable_adamw needs the params"):
        tx.update({"w": jnp.ones(2)}, tx.init({"w": jnp.ones(2)}))
