"""Schedule-free beyond the table of cases: the params to evaluate, its sums, and what it starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ..helpers import assert_close, make_grads, make_params, train_compiled

INNER = fo.schedule_free_sgd(0.1)
WITHIN = {
    "chain": fo.chain(fo.clip(10.0), INNER),
    "named_chain": fo.named_chain(("clip", fo.clip(10.0)), ("step", INNER)),
    "MultiSteps": fo.MultiSteps(INNER, 1),
    "apply_if_finite": fo.apply_if_finite(INNER, 3),
    "partition": fo.partition({"a": INNER, "b": INNER}, {"dense": "a", "scale": "b"}),
}


def last(tx, dtype="float32", steps=20):
    params, _, state = train_compiled(tx, make_params(dtype), make_grads(steps, dtype))
    return jax.tree.map(lambda p: p[-1], params), state


@pytest.mark.parametrize("name", WITHIN)
def test_eval_params_are_found_in_any_state(name):
    params, state = last(INNER)
    expected = fo.schedule_free_eval_params(state, params)
    params, state = last(WITHIN[name])
    assert_close(fo.schedule_free_eval_params(state, params), expected, rtol=1e-6)


def test_masked_leaves_are_evaluated_as_they_are():
    params, state = last(fo.masked(INNER, {"dense": True, "scale": False}))
    assert_close(fo.schedule_free_eval_params(state, params)["scale"], params["scale"])


def test_eval_params_are_the_mean_of_the_iterates():
    grads, start = make_grads(20), make_params()
    params, state = last(INNER)

    def leaf(w, g):
        z = w - 0.1 * np.cumsum(np.asarray(g, np.float64), axis=0)
        return z.mean(axis=0)

    expected = jax.tree.map(leaf, start, grads)
    assert_close(fo.schedule_free_eval_params(state, params), expected, rtol=1e-5)


def test_without_its_state_there_is_an_error():
    params = make_params()
    with pytest.raises(ValueError, match="needs a state with a ScheduleFreeState"):
        fo.schedule_free_eval_params(fo.adam(0.1).init(params), params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_sums_do_not_saturate(dtype):
    params, state = last(fo.schedule_free_sgd(1e-3, weight_lr_power=0.0), dtype, steps=600)
    assert state.weight_sum == 600 and state.z["scale"].dtype == jnp.float32
    assert fo.schedule_free_eval_params(state, params)["scale"].dtype == dtype


def test_a_rate_of_zero_stands_still():
    params, state = last(fo.schedule_free_adamw(0.0), steps=3)
    assert_close((params, state.z), (make_params(), make_params()))


def test_z_is_a_copy():
    params = make_params()
    z = fo.schedule_free_sgd().init(params).z
    assert_close(z, params)
    pointers = [{x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)} for tree in (params, z)]
    assert not pointers[0] & pointers[1]


@pytest.mark.parametrize("b1", [0.0, 1.5, -0.1])
def test_b1_is_a_share_of_the_mean(b1):
    with pytest.raises(ValueError, match=r"b1 must be in \(0, 1\]"):
        fo.schedule_free_adamw(b1=b1)


@pytest.mark.parametrize("rates", [[0.25, 0.5, 0.75, 1.0, 1.0], [1.0, 0.1, 0.1, 0.1, 0.1], [0.0, 0.0, 1.0, 0.5, 0.0]])
def test_a_step_weighs_by_the_rate_that_moved_it(rates):
    """facebookresearch/schedule_free, in numbers: gradients of 1, b1 = 0.9, weights of rates squared."""

    def schedule(count):
        return jnp.array(rates)[count]

    tx, w = fo.schedule_free(fo.sgd(schedule), schedule, b1=0.9), jnp.array(1.0)
    state = tx.init(w)
    x = z = 1.0
    largest = total = 0.0
    for rate in rates:
        updates, state = tx.update(jnp.array(1.0), state, w)
        w = fo.apply_updates(w, updates)
        largest = max(largest, rate)
        total += largest**2
        z -= rate
        c = largest**2 / total if total else 0.0
        x = (1 - c) * x + c * z
        assert_close([fo.schedule_free_eval_params(state, w), w], [x, 0.9 * x + 0.1 * z], rtol=1e-5)
    assert float(state.max_lr) == max(rates)
