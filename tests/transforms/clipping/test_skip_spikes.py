"""skip_spikes: large steps never were, up to a bound."""

import jax
import jax.numpy as jnp
import numpy as np

import functional_opt as fo

from ...helpers import assert_close


def run(tx, sizes):
    """Updates and states, stacked, of one weight with gradients of these sizes."""

    def step(state, g):
        u, state = tx.update({"w": g}, state, {"w": jnp.zeros([])})
        return state, (u["w"], state)

    return jax.jit(lambda g: jax.lax.scan(step, tx.init({"w": jnp.zeros([])}), g)[1])(jnp.asarray(sizes, "float32"))


def test_a_spike_never_was():
    sizes, spikes = np.array([1.0, -2.0, 1.0, 30.0, 1.5, -12.0, 1.0]), [3, 5]
    updates, states = run(fo.skip_spikes(fo.adam(0.1), 4.0, warmup_steps=3), sizes)
    alone, _ = run(fo.adam(0.1), np.delete(sizes, spikes))
    assert_close(np.delete(np.asarray(updates), spikes), np.asarray(alone), rtol=1e-5)
    assert_close(np.asarray(updates)[spikes], np.zeros(2))
    assert states.total_skipped.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert states.inner_state[0].count.tolist() == [1, 2, 3, 3, 4, 4, 5]


def test_no_more_in_a_row_than_allowed_and_the_median_follows():
    tx = fo.skip_spikes(fo.scale(1.0), 4.0, window=7, warmup_steps=3, max_consecutive_skips=2)
    updates, states = run(tx, [1.0] * 4 + [10.0] * 6)
    assert updates.tolist()[4:] == [0, 0, 10, 0, 10, 10]  # 4 of the last 7 are tens, when the ninth comes
    assert states.consecutive_skips.tolist()[4:] == [1, 2, 0, 1, 0, 0]


def test_what_is_not_finite_is_always_skipped_and_not_recorded():
    tx = fo.skip_spikes(fo.scale(1.0), 4.0, max_consecutive_skips=1)
    updates, states = run(tx, [np.nan, np.inf, np.nan, 1.0])
    assert updates.tolist() == [0, 0, 0, 1] and states.total_skipped[-1] == 3 and states.norms.count[-1] == 1


def test_metrics_count_it():
    updates, states = run(fo.with_metrics(fo.skip_spikes(fo.scale(1.0), 4.0, warmup_steps=1)), [1.0, 9.0, 1.0, 9.0])
    assert states.metrics["skipped"].tolist() == [0, 1, 1, 2]
