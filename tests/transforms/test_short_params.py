"""stochastic_round, kahan, master_weights: 16-bit params that follow float32 ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import functional_opt as fo

from ..helpers import assert_close, assert_same_types, at, make_grads, make_params

WRAPPERS = {
    "stochastic_round": fo.stochastic_round,
    "kahan": fo.kahan,
    **{
        f"master_weights-{dtype}": lambda tx, dtype=dtype: fo.master_weights(tx, dtype)
        for dtype in ("float32", "int16")
    },
    "master_weights-int8": lambda tx: fo.master_weights(tx, "int8"),
}
each_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def sgd():
    """The update is minus the gradient, so that a test says where the params go."""
    return fo.scale(-1.0)


@jax.jit
def step(tx, w, g, state):
    u, state = tx.update(g, state, w)
    return fo.apply_updates(w, u), u, state


def exact_bfloat16(x):
    return np.asarray(jnp.asarray(x, "bfloat16").astype("float32"))


numbers = st.builds(lambda n, e: np.float32(n * 2.0**e), st.integers(-(2**24), 2**24), st.integers(-40, 0))
several = st.lists(st.tuples(numbers, numbers), min_size=8, max_size=8)


@given(several, st.integers(0, 99))
def test_rounds_to_a_neighbour_whatever_the_step(pairs, seed):
    """Also where a step crosses zero or cancels all but the last bits, params are one of the two neighbours."""
    w, u = (np.array(x, np.float32) for x in zip(*pairs, strict=True))
    w = exact_bfloat16(w)
    tx = fo.stochastic_round(sgd(), key=seed)
    new, _, _ = step(tx, jnp.asarray(w, "bfloat16"), jnp.asarray(-u), tx.init(w))
    new, exact = np.asarray(new.astype("float32")), w + u
    below = (exact.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # towards zero
    above = np.where(below == exact, exact, (below.view(np.uint32) + np.uint32(0x10000)).view(np.float32))
    assert np.all((new == below) | (new == above)), (w, u, new, below, above)


@given(several)
def test_params_are_the_rounded_master(pairs):
    """The step is exact, so the params are the rounded float32 weights, and with "int16" these come back whole."""
    w, u = (np.array(x, np.float32) for x in zip(*pairs, strict=True))
    w = exact_bfloat16(w)
    exact = w + u
    usual = np.abs(exact) * 2.0**15 >= np.abs(w)
    whole, split = fo.master_weights(sgd()), fo.master_weights(sgd(), "int16")
    p = jnp.asarray(w, "bfloat16")
    for tx in (whole, split):
        new, _, state = step(tx, p, jnp.asarray(-u), tx.init(p))
        away = (np.asarray(exact).view(np.uint32) + np.uint32(0x8000) & np.uint32(0xFFFF0000)).view(np.float32)
        rounded = exact_bfloat16(exact) if tx == whole else away
        np.testing.assert_array_equal(np.asarray(new.astype("float32"))[usual], rounded[usual])
        if tx == split:
            bits = np.asarray(new.astype("float32")).view(np.int32) + np.asarray(state.master).astype(np.int32)
            np.testing.assert_array_equal(bits.view(np.float32)[usual], exact[usual])


def test_the_mean_of_stochastic_rounding_is_right():
    w = jnp.full(20_000, 1.5, "bfloat16")
    tx = fo.stochastic_round(sgd())
    new, _, state = step(tx, w, jnp.full(w.shape, -0.0021), tx.init(w))
    assert set(np.asarray(new.astype("float32")).tolist()) == {1.5, 1.5078125}
    np.testing.assert_allclose(new.astype("float32").mean(), 1.5021, atol=4 * 0.0035 / np.sqrt(w.size))
    again, _, _ = step(tx, w, jnp.full(w.shape, -0.0021), state)
    assert 0.2 < (again != new).mean() < 0.6  # other bits at another step


def test_bits_differ_between_leaves_and_seeds():
    w = {"a": jnp.full(1000, 1.5, "bfloat16"), "b": jnp.full(1000, 1.5, "bfloat16")}
    g = jax.tree.map(lambda x: jnp.full(x.shape, -0.004), w)
    one, two = (step(tx, w, g, tx.init(w))[0] for tx in (fo.stochastic_round(sgd()), fo.stochastic_round(sgd(), 1)))
    assert (one["a"] != one["b"]).any() and (one["a"] != two["a"]).any()


def test_bits_are_the_same_on_four_devices():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    w, g = jnp.full((8, 16), 1.5, "bfloat16"), jnp.full((8, 16), -0.004)
    tx = fo.stochastic_round(sgd())
    alone, _, _ = step(tx, w, g, tx.init(w))
    for spec in (PartitionSpec("data"), PartitionSpec(None, "data")):
        on_four = jax.device_put((w, g), NamedSharding(mesh, spec))
        shared, _, _ = step(tx, *on_four, tx.init(w))
        assert len(shared.devices()) == 4
        assert_close(shared, alone)


@pytest.mark.parametrize("name, rtol", [("master_weights-float32", 0), ("master_weights-int16", 0), ("kahan", 1e-4)])
def test_training_follows_float32(name, rtol):
    """Gradients at the rounded weights: the same float32 weights after every step, to the last bit or nearly so."""
    tx, inner = WRAPPERS[name](fo.adamw(1e-3, weight_decay=0.1)), fo.adamw(1e-3, weight_decay=0.1)
    start, target = make_params("bfloat16"), jax.tree.map(lambda g: g[0], make_grads(1))

    def gradient(p):
        return jax.tree.map(lambda w, t: w.astype("float32") - t, p, target)

    @jax.jit
    def run():
        def both(carry, _):
            p, state, w, inner_state = carry
            rounded = jax.tree.map(lambda x: x.astype("bfloat16"), w)
            u, state = tx.update(gradient(p), state, p)
            v, inner_state = inner.update(gradient(rounded), inner_state, w)
            p, w = fo.apply_updates(p, u), fo.apply_updates(w, v)
            return (p, state, w, inner_state), None

        w = jax.tree.map(lambda x: x.astype("float32"), start)
        return jax.lax.scan(both, (start, tx.init(start), w, inner.init(w)), length=200)[0]

    p, state, w, _ = run()
    low = state.compensation if name == "kahan" else state.master

    def whole(p, m):
        if m.dtype == jnp.float32:
            return m
        wide = p.astype("float32")
        if m.dtype == jnp.bfloat16:
            return wide + m.astype("float32")
        return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(wide, "int32") + m, "float32")

    assert_close(jax.tree.map(whole, p, low), w, rtol=rtol)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).all(), p, start)))


@each_wrapper
def test_small_steps_are_not_lost(wrap):
    """Steps of 2⁻¹² of a weight, which rounding to the nearest takes back one by one."""
    tx, w = wrap(sgd()), jnp.ones(256, "bfloat16")
    state, g = tx.init(w), jnp.full(w.shape, -(2.0**-12))
    for _ in range(64):
        w, u, state = step(tx, w, g, state)
        assert u.dtype == jnp.float32
    np.testing.assert_allclose(w.astype("float32").mean(), 1 + 2.0**-6, atol=1e-3)


@each_wrapper
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_none_and_mixed_dtypes(wrap, dtype):
    """What has no update stays as it is, and float32 leaves are stepped as ever."""
    params = {"a": jnp.ones(3, dtype), "b": jnp.ones(3, dtype), "c": jnp.ones(3), "d": None}
    tx = wrap(fo.sgd(0.1, momentum=0.9))
    state = tx.init(params)
    assert_same_types(tx.init(jax.eval_shape(lambda: params)), state)
    for _ in range(3):
        grads = {"a": None, "b": jnp.ones(3, dtype), "c": jnp.ones(3), "d": None}
        u, after = tx.update(grads, state, params)
        assert_same_types(after, state)
        params, state = fo.apply_updates(params, u), after
    assert u["a"] is None and u["d"] is None
    assert_close(params["a"], jnp.ones(3))
    expected = 1 - 0.1 * (1 + 1.9 + 2.71)
    np.testing.assert_allclose(params["c"], expected, rtol=1e-6)
    np.testing.assert_allclose(params["b"].astype("float32"), expected, rtol=0.02)


@each_wrapper
def test_needs_params(wrap):
    tx = wrap(sgd())
    with pytest.raises(ValueError, match="needs the params"):
        tx.update(at(make_grads(1), 0), tx.init(make_params()))


def test_not_finite_shows():
    w = jnp.ones(3, "bfloat16")
    for wrap in WRAPPERS.values():
        tx = wrap(sgd())
        new, _, _ = step(tx, w, jnp.array([np.nan, np.inf, 0.0]), tx.init(w))
        assert np.isfinite(new.astype("float32")).tolist() == [False, False, True]
