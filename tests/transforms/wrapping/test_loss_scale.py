"""dynamic_loss_scale: float16 gradients that would vanish do not, and the scale finds its size."""

import jax
import jax.numpy as jnp
import pytest

import functional_opt as fo

from ...helpers import assert_close, at, make_grads, make_params


def scales(tx, grads):
    """The scale and the total of skipped steps after each gradient."""
    state, found = tx.init({"w": jnp.zeros([])}), []
    for g in grads:
        _, state = tx.update({"w": jnp.asarray(g, "float32")}, state)
        found.append((float(fo.loss_scale(state)), int(state.total_skipped)))
    return found


def test_halves_and_doubles():
    tx = fo.dynamic_loss_scale(fo.sgd(0.1), 8.0, growth_interval=2, min_scale=2.0)
    inf, nan = jnp.inf, jnp.nan
    got = scales(tx, [1, 1, 1, inf, 1, 1, nan, nan, inf, 1, 1])
    assert [s for s, _ in got] == [8, 16, 16, 8, 8, 16, 8, 4, 2, 2, 4]
    assert [n for _, n in got] == [0, 0, 0, 1, 1, 1, 2, 3, 4, 4, 4]
    assert scales(tx, [inf] * 4)[-1] == (2, 4)


def test_a_scale_that_starts_below_its_bound_is_not_lifted_by_a_bad_step():
    tx = fo.dynamic_loss_scale(fo.sgd(0.1), 0.25, growth_interval=1, min_scale=1.0)
    assert [s for s, _ in scales(tx, [jnp.inf, 1, jnp.inf, 1, jnp.inf])] == [0.25, 0.5, 0.5, 1, 1]


def test_a_scale_never_overflows():
    assert scales(fo.dynamic_loss_scale(fo.sgd(0.1), 2.0**126, growth_interval=1), [0] * 3)[-1] == (2.0**127, 0)


def test_small_float16_gradients_arrive_and_bad_steps_never_were():
    """A gradient of 1e-9, which float16 does not have, moves the weight as in float32."""
    tx, params = fo.dynamic_loss_scale(fo.adam(0.1, eps=1e-12), 2.0**20), {"w": jnp.zeros(2, "float16")}

    @jax.jit
    def step(params, state, x):
        def loss(p):
            return jnp.sum(p["w"] * x).astype("float32") * fo.loss_scale(state)

        return tx.update(jax.grad(loss)(params), state, params)

    tiny = jnp.array([1e-9, -2e-9], "float32")
    updates, state = step(params, tx.init(params), tiny)
    assert updates["w"].dtype == "float16"
    assert_close(updates, {"w": jnp.array([-0.1, 0.1])}, rtol=1e-3)
    updates, after = step(params, state, jnp.array([1.0, 0.0]))  # 2²⁰ is no float16
    assert_close(updates, {"w": jnp.zeros(2)})
    assert_close(after.inner_state, state.inner_state)
    assert fo.loss_scale(after) == 2.0**19


def test_metrics():
    tx = fo.with_metrics(fo.dynamic_loss_scale(fo.sgd(0.1), 4.0))
    state = tx.init(make_params())
    for g in (make_grads(1), jax.tree.map(lambda g: g * jnp.inf, make_grads(1))):
        _, state = tx.update(at(g, 0), state, make_params())
    found = fo.metrics(state)
    assert (float(found["loss_scale"]), int(found["skipped"]), int(found["step"])) == (2, 1, 2)


def test_states_without_one_scale():
    with pytest.raises(ValueError, match="got 0: wrap the transformation in dynamic_loss_scale"):
        fo.loss_scale(fo.adam(0.1).init(make_params()))
    twice = fo.chain(*[fo.dynamic_loss_scale(fo.sgd(0.1))] * 2)
    with pytest.raises(ValueError, match="got 2: only the outermost may have one"):
        fo.loss_scale(twice.init(make_params()))
