"""Running means of the params and slow params: their numbers, and that one function finds them anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from functional_opt import (
    LookaheadParams,
    MultiSteps,
    adam,
    apply_if_finite,
    apply_updates,
    chain,
    eval_params,
    lookahead,
    masked,
    named_chain,
    params_ema,
    partition,
    schedule_free_eval_params,
    schedule_free_sgd,
    sgd,
)

from ...helpers import assert_close, assert_same_types, at, make_grads, make_params, train, without_bias


def mean_by_hand(all_params, start, decay, debias):
    mean, weight = (0.0, 0.0) if debias else (np.float64(start), 1.0)
    for t, w in enumerate(np.asarray(all_params, np.float64)):
        d = decay(t) if callable(decay) else decay
        mean, weight = d * mean + (1 - d) * w, d * weight + (1 - d)
    return mean / weight


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("decay", [0.9, lambda t: (1 + t) / (10 + t)], ids=["number", "schedule"])
def test_the_mean_of_the_params(decay, debias):
    params = make_params()
    tx = chain(adam(0.1), params_ema(decay, debias))
    all_params, _, state = train(tx, params, make_grads(20))
    last = at(all_params, 19)
    expected = jax.tree.map(lambda ws, w: mean_by_hand(ws, w, decay, debias), all_params, params)
    assert_close(eval_params(state, last), expected, rtol=1e-5)
    assert not np.allclose(last["scale"], expected["scale"], rtol=1e-3)
    assert_same_types(eval_params(state, last), params)


def test_before_the_first_step_and_without_any():
    params = make_params("bfloat16")
    for tx in (params_ema(0.9), params_ema(0.9, debias=False), lookahead(sgd(0.1), 2, 0.5), adam(0.1)):
        assert_close(eval_params(tx.init(params), params), params)
        assert_same_types(eval_params(tx.init(params), params), params)
    assert eval_params((), {"a": None}) == {"a": None}


def test_a_leaf_without_gradients_is_its_own_mean():
    tx, params, grads = chain(sgd(0.1), params_ema(0.9)), make_params(), make_grads(2)
    state = tx.init(params)
    for i in range(2):
        updates, state = tx.update(without_bias(at(grads, i)), state, params)
    mean = eval_params(state, params)
    assert_close(mean["dense"]["bias"], params["dense"]["bias"])
    assert np.all(mean["dense"]["kernel"] != params["dense"]["kernel"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: chain(sgd(0.0), chain(tx)),
        lambda tx: named_chain(("a", tx), ("b", sgd(1.0))),
        lambda tx: MultiSteps(tx, 1),
        lambda tx: apply_if_finite(tx, 2),
        lambda tx: partition({"a": tx, "b": sgd(1.0)}, "a"),
    ],
    ids=["chain", "named_chain", "MultiSteps", "apply_if_finite", "partition"],
)
def test_found_in_any_nesting(wrap):
    inner, params, grads = lookahead(sgd(0.1), 3, 0.5), make_params(), at(make_grads(1), 0)
    tx = wrap(inner)
    state = tx.init(params)
    _, state = tx.update(grads, state, params)
    assert_close(eval_params(state, jax.tree.map(lambda w: w + 9, params)), params)


def test_leaves_under_several_states():
    """The bias has slow params, the kernel a mean, the scale nothing."""
    groups = {"slow": lookahead(sgd(0.1), 5, 0.5), "mean": chain(sgd(0.1), params_ema(0.5)), "plain": sgd(0.1)}
    tx = partition(groups, {"*/bias": "slow", "*/kernel": "mean", "scale": "plain"})
    params = make_params()
    all_params, _, state = train(tx, params, make_grads(3))
    last = at(all_params, 2)
    shown = eval_params(state, last)
    assert_close(shown["dense"]["bias"], params["dense"]["bias"])
    kernels = all_params["dense"]["kernel"]
    assert_close(shown["dense"]["kernel"], (kernels[0] + 2 * kernels[1] + 4 * kernels[2]) / 7, rtol=1e-6)
    assert_close(shown["scale"], last["scale"])


def test_the_last_of_a_chain_counts():
    tx, params = chain(schedule_free_sgd(0.1), params_ema(0.0)), make_params()
    all_params, _, state = train(tx, params, make_grads(3))
    last = at(all_params, 2)
    assert_close(eval_params(state, last), last, rtol=1e-6)
    assert not np.allclose(schedule_free_eval_params(state[0], last)["scale"], last["scale"])
    assert_close(eval_params(state[0], last), schedule_free_eval_params(state[0], last))


def test_masked_means():
    tx, params = masked(params_ema(0.0), {"**/kernel": True}), make_params()
    _, state = tx.update(params, tx.init(params), params)
    shown = eval_params(state, params)
    assert_close(shown, {**params, "dense": {**params["dense"], "kernel": 2 * params["dense"]["kernel"]}}, rtol=1e-6)


def test_a_long_mean_in_16_bits():
    """It is kept in float32: in bfloat16 it would not move."""
    tx, w = params_ema(0.999, debias=False), jnp.ones(1, "bfloat16")

    def step(_, state):
        return tx.update(jnp.full(1, 0.5, "bfloat16"), state, w)[1]

    state = jax.lax.fori_loop(0, 1000, step, tx.init(w))
    np.testing.assert_allclose(state.ema, 1 + 0.5 * (1 - 0.999**1000), rtol=2e-5)
    assert eval_params(state, w).dtype == jnp.bfloat16


@pytest.mark.parametrize("reset_state", [False, True])
def test_lookahead_params_are_those_of_optax(reset_state):
    ours, theirs = lookahead(adam(0.1), 3, 0.5, reset_state), optax.lookahead(optax.adam(0.1), 3, 0.5, reset_state)
    params, peer_params = LookaheadParams.init_synced(make_params()), optax.LookaheadParams.init_synced(make_params())
    state, peer_state, grads = ours.init(params), theirs.init(peer_params), make_grads(7)
    for i in range(7):
        updates, state = ours.update(at(grads, i), state, params)
        peer_updates, peer_state = theirs.update(at(grads, i), peer_state, peer_params)
        params = apply_updates(params, updates)
        peer_params = optax.apply_updates(peer_params, peer_updates)
    assert_close(tuple(params), tuple(peer_params), rtol=1e-5)
    assert_close(eval_params(state, params), params.slow)
    assert state.slow == ()


def test_a_reset_optimizer_starts_at_the_new_params():
    """Its state has params here, those that it starts from."""
    tx, params, grads = lookahead(schedule_free_sgd(0.1), 2, 0.5, reset_state=True), make_params(), make_grads(2)
    state = tx.init(params)
    for i in range(2):
        updates, state = tx.update(at(grads, i), state, params)
        params = apply_updates(params, updates)
    assert_close(state.fast_state.z, params)
    assert float(params["scale"]) != float(make_params()["scale"])


def test_what_is_no_decay():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1.0"):
        params_ema(1.0)
    with pytest.raises(ValueError, match="params_ema needs the params"):
        params_ema(0.9).update({"w": 1.0}, params_ema(0.9).init({"w": 1.0}))


def test_synced_params_have_buffers_of_their_own():
    """So that both, and the params they were made of, can be donated."""
    params = make_params()
    synced = LookaheadParams.init_synced(params)
    assert_close(tuple(synced), (params, params))
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, synced))]
    assert len(set(pointers)) == len(pointers)


def test_swapped_arguments():
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"call eval_params\(state, params\)"):
        eval_params(params, chain(adam(0.1), params_ema(0.9)).init(params))
