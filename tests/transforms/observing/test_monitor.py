"""Measurements of the updates: what they are, and that their place in the state is there from the start."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functional_opt as fo
from functional_opt import chain, clip_by_global_norm, global_norm, measure_with_ema, monitor, sgd, snapshot
from functional_opt.core.queries import get

from ...helpers import assert_same_types, at, make_grads, make_params, train, without_bias


def is_large(updates):
    return global_norm(updates) > 2.5


def watched(o):
    return o.monitor({"norm": optax.tree.norm, "large": o.measure_with_ema(is_large, decay=0.9)})


def test_the_measurements_of_optax():
    params, grads, ours, theirs = make_params(), make_grads(5), watched(fo), watched(optax)
    mine, peer = ours.init(params), theirs.init(params)
    for i in range(5):
        _, mine = ours.update(at(grads, i), mine, params)
        _, peer = theirs.update(at(grads, i), peer, params)
        for name in ("norm", "large"):
            np.testing.assert_allclose(mine.measurements[name], peer.measurements[name], rtol=1e-6)
    assert 0 < mine.measurements["large"] < 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_a_scan(dtype):
    """Optax's monitor adds its measurements at the first update, and a scan refuses that."""
    tx = chain(monitor({"norm": global_norm, "large": measure_with_ema(is_large, 0.9)}), snapshot("all", lambda u: u))
    params, grads = make_params(dtype), make_grads(3)
    _, updates, state = train(tx, params, grads)
    np.testing.assert_allclose(get(state, "norm"), global_norm(at(grads, 2)), rtol=1e-6)
    assert get(state, "all")["scale"].dtype == dtype
    assert_same_types(state, tx.init(params))


def test_what_is_seen_is_where_it_stands():
    tx = chain(snapshot("before", global_norm), clip_by_global_norm(1.0), snapshot("after", global_norm), sgd(0.1))
    assert get(tx.init(make_params()), "before") == 0.0
    _, state = tx.update(at(make_grads(1), 0), tx.init(make_params()), make_params())
    assert get(state, "before") > 1.5 and abs(get(state, "after") - 1) < 1e-6


def test_a_leaf_that_is_not_measured_keeps_its_last_measurement():
    def sizes(updates):
        return jax.tree.map(lambda g: jnp.max(jnp.abs(g)), updates)

    tx, params, grads = snapshot("sizes", sizes), make_params(), at(make_grads(1), 0)
    _, first = tx.update(grads, tx.init(params))
    _, second = tx.update(jax.tree.map(lambda g: 2 * g, without_bias(grads)), first)
    before, after = first.measurement["sizes"], second.measurement["sizes"]
    assert after["dense"]["bias"] == before["dense"]["bias"] and after["scale"] == 2 * before["scale"]


def test_what_is_no_measure():
    with pytest.raises(TypeError, match="measures must be a dict from names to functions of the updates, got"):
        monitor(global_norm)
    with pytest.raises(TypeError, match=r"measures\['norm'\] must be a gradient transformation"):
        monitor({"norm": 3})
