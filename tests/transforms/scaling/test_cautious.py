"""cautious steps and decay: where signs agree."""

import jax.numpy as jnp
import numpy as np

import functional_opt as fo


def test_signs_are_told_where_products_vanish():
    tiny = jnp.array([1e-30, -0.25e-30, 0.0])
    tx = fo.scale_by_cautious(fo.trace(0.5), eps=1.0)
    _, state = tx.update(jnp.array([1e-30, 1e-30, 1e-30]), tx.init(tiny))
    updates, _ = tx.update(tiny, state)
    np.testing.assert_allclose(updates, [1.5 * 1.5e-30, 0.0, 0.0], rtol=1e-5)
    tx = fo.add_cautious_decayed_weights(0.5)
    updates, _ = tx.update(tiny, tx.init(tiny), jnp.array([2e-30, 2e-30, 2e-30]))
    np.testing.assert_allclose(updates, [2e-30, -0.25e-30, 1e-30], rtol=1e-5)


def test_decay_has_the_mask_and_the_schedule_of_the_common_one():
    tx = fo.add_cautious_decayed_weights(lambda count: 0.5 * count, mask={"b": False, "w": True})
    params = {"b": jnp.array([2.0, -2.0]), "w": jnp.array([2.0, -2.0])}
    state = tx.init(params)
    for expected in (1.0, 2.0):
        updates, state = tx.update({"b": jnp.ones(2), "w": jnp.ones(2)}, state, params)
        assert updates["b"].tolist() == [1.0, 1.0]
        assert updates["w"].tolist() == [expected, 1.0]
    rules = [note.rule for note in fo.explain(fo.chain(fo.sgd(0.1), tx), params).notes]
    assert rules == ["decay_after_learning_rate"]


def test_a_whole_optimizer_steps_downhill_only():
    tx = fo.cautious(fo.chain(fo.scale(-1.0), fo.add_decayed_weights(2.0)), eps=1.0)
    w = jnp.array([1.0, 1.0, -1.0])
    updates, _ = tx.update(jnp.array([1.0, -1.0, -5.0]), tx.init(w), w)
    np.testing.assert_allclose(updates, [0.0, 3.0 * 3 / 3, 3.0 * 3 / 3])
