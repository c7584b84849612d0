"""quantize_state: the error of codes of blocks, what is never lost, bytes, and training."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.sharding import PartitionSpec as P

import functional_opt as fo
from functional_opt.core.queries import get
from functional_opt.core.slots import Signed, Unsigned
from functional_opt.placement.traffic import collectives

from ...helpers import assert_close

BLOCK = 4
SHAPES = [(), (1,), (4,), (7,), (3, 8), (5, 3), (2, 3, 5), (64, 5), (0, 4)]
each_width = pytest.mark.parametrize("bits", [8, 4])


class Slots(NamedTuple):
    mu: Signed
    nu: Unsigned


@fo.transformation
class remember(fo.GradientTransformation):
    """Gives what was stored of the gradient before, and of its absolute value."""

    def init(self, params):
        return Slots(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(self, updates, state, params=None, **extra):
        before = {"mu": state.mu["x"], "nu": state.nu["x"]}
        return before, Slots(updates, jax.tree.map(jnp.abs, updates))


@jax.jit
def twice(tx, x):
    """What is left of x after it was stored once, and again."""
    state = tx.update({"x": x}, tx.init({"x": x}))[1]
    once, _ = tx.update({"x": x}, state)
    again = [tx.update({"x": y}, tx.update({"x": y}, state)[1])[0] for y in (once["mu"], once["nu"])]
    return once, {"mu": again[0]["mu"], "nu": again[1]["nu"]}


def blocks(x):
    """Of every element, the largest of its block."""
    axis = max(x.ndim - 1, 0)
    while axis > 0 and np.prod(x.shape[axis:]) < BLOCK:
        axis -= 1
    rows = x.reshape(-1, int(np.prod(x.shape[axis:])))
    n = rows.shape[1]
    size = -(-n // -(-n // BLOCK)) if n else 1
    parts = [np.abs(rows[:, i : i + size]).max(axis=1, keepdims=True, initial=0) for i in range(0, n, size)]
    return np.concatenate([np.repeat(p, size, 1) for p in parts], 1)[:, :n].reshape(x.shape) if parts else x


numbers = st.builds(lambda n, e: np.float32(n * 10.0**e), st.integers(-99, 99), st.integers(-20, 2))


@each_width
@given(st.sampled_from(SHAPES).flatmap(lambda shape: arrays(np.float32, shape, elements=numbers)))
def test_the_error_is_a_part_of_the_block(bits, x):
    once, again = twice(fo.quantize_state(remember(), bits, block_size=BLOCK, min_size=0), x)
    largest = blocks(x)
    for name, exact in (("mu", x), ("nu", np.abs(x))):
        stored = np.asarray(once[name])
        assert stored.shape == x.shape
        assert np.all(np.abs(stored - exact) <= largest / (127 if bits == 8 else 7) * (1 + 1e-4))
        np.testing.assert_array_equal(again[name], stored)
        assert np.all(stored[largest == 0] == 0)
    assert np.all(np.asarray(once["nu"])[x != 0] > 0)


@each_width
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(bits, bad):
    x = np.ones((2, 8), np.float32)
    x[0, 1] = bad
    once, _ = twice(fo.quantize_state(remember(), bits, block_size=BLOCK, min_size=0), x)
    for stored in once.values():
        finite = np.isfinite(stored)
        assert not finite[0, :4].any() and finite[0, 4:].all() and finite[1].all()


def test_bytes():
    params = {
        "kernel": jax.ShapeDtypeStruct((1000, 512), "float32"),
        "odd": jax.ShapeDtypeStruct((64, 257), "float32"),
    }
    elements = 1000 * 512 + 64 * 257
    for bits, most in ((8, 2.1), (4, 1.1)):
        assert fo.explain(fo.quantize_state(fo.adam(1e-3), bits), params).state_bytes < most * elements


def test_small_leaves_and_params_in_the_state_are_left_alone():
    params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
    tx = fo.quantize_state(fo.schedule_free_adamw(0.1), min_size=32)
    state = tx.init(params).inner_state
    assert get(state, "nu")["kernel"].dtype == "uint8"
    assert get(state, "nu")["bias"].dtype == get(state, "z")["kernel"].dtype == "float32"


def test_slots_that_are_not_declared():
    @fo.transformation
    class own(fo.GradientTransformation):
        def init(self, params):
            return {"mine": params}

        def update(self, updates, state, params=None, **extra):
            return updates, state

    params = {"w": jnp.ones(8)}
    for names, dtype in (({}, "float32"), ({"unsigned": ("mine",)}, "uint8"), ({"signed": ("mine",)}, "int8")):
        tx = fo.quantize_state(own(), min_size=0, **names)
        assert tx.init(params).inner_state["mine"]["w"].dtype == dtype
    (note,) = [x for x in fo.explain(fo.quantize_state(own(), min_size=0), params).notes if x.rule == "kept_slots"]
    assert "['mine']['w'] (not declared)" in note.message


def test_another_library_s_slots():
    tx = fo.quantize_state(optax.adam(0.1), min_size=0, unsigned=("nu",), signed=("mu",))
    params = {"w": jnp.arange(8.0), "b": None}
    state = tx.init(params)
    assert (state.inner_state[0].mu["w"].dtype, state.inner_state[0].nu["w"].dtype) == ("int8", "uint8")
    updates, _ = tx.update(params, state, params)
    np.testing.assert_allclose(updates["w"][1:], -0.1, rtol=1e-5)
    places = fo.tree.map_params(tx, lambda _: "param", state)
    assert places.scale == ({"w": "param", "b": None},) * 2


def test_codes_are_sharded_as_the_params():
    tx, spec = fo.quantize_state(fo.adam(0.1), min_size=0), PartitionSpec("data")
    state = fo.tree.map_params(tx, lambda _, s: s, tx.init({"w": jnp.ones((4, 8))}), {"w": spec})
    assert state.inner_state[0].mu == state.inner_state[0].nu == {"w": spec}


def test_trains_as_float32_does():
    """Logistic regression whose features differ by 10⁴ in size, so that second moments in a block do by 10⁸."""
    rng = np.random.default_rng(0)
    sizes = np.logspace(-2, 2, 64)
    x, y = rng.standard_normal((256, 64)) * sizes, rng.integers(0, 8, 256)

    def loss(w):
        return jnp.mean(-jax.nn.log_softmax(jnp.asarray(x, "float32") @ w)[jnp.arange(256), y])

    @jax.jit
    def final(tx):
        def step(_, carry):
            w, state = carry
            updates, state = tx.update(jax.grad(loss)(w), state, w)
            return fo.apply_updates(w, updates), state

        w = jnp.zeros((64, 8))
        return loss(jax.lax.fori_loop(0, 300, step, (w, tx.init(w)))[0])

    adam = fo.adam(0.01)
    exact = final(adam)
    assert exact < 1.6 < loss(jnp.zeros((64, 8)))
    for bits, worse in ((8, 1.02), (4, 1.1)):
        assert final(fo.quantize_state(adam, bits, block_size=256, min_size=0)) < worse * exact
    assert final(fo.quantize_state(adam, min_size=0, code="companded")) < 1.02 * exact


def test_flashoptim():
    """AdamW in 3.25 bytes per element of state is AdamW in float32, up to a few percent of the way."""
    rng = np.random.default_rng(0)
    start, goal = (0.05 * rng.standard_normal((64, 256)) for _ in range(2))
    noise = jnp.asarray(0.02 * rng.standard_normal((100, 64, 256)), "float32")

    @functools.partial(jax.jit, static_argnums=1)
    def trained(tx, dtype):
        def step(carry, n):
            w, state = carry
            updates, state = tx.update((w - goal + n).astype(dtype), state, w)
            return (fo.apply_updates(w, updates), state), None

        w = jnp.asarray(start, dtype)
        return jax.lax.scan(step, (w, tx.init(w)), noise)[0]

    adamw = fo.adamw(1e-3)
    exact, _ = trained(adamw, "float32")
    tx = fo.master_weights(fo.quantize_state(adamw, code="companded"), "int8")
    w, state = trained(tx, "bfloat16")
    assert sum(x.nbytes for x in jax.tree.leaves(state)) < 3.26 * w.size
    assert np.linalg.norm(w.astype("float32") - exact) < 0.03 * np.linalg.norm(exact - start)


def test_companded_codes_are_part_of_the_state():
    tx = fo.quantize_state(fo.adam(0.1), min_size=0, block_size=4, code="companded")
    params = {"w": jnp.linspace(-1, 1, 24).reshape(2, 12)}
    state = stepped(tx, params)
    again = tx.encode(tx.decode(state))
    jax.tree.map(np.testing.assert_array_equal, again, state)
    _, _, loaded = fo.from_arrays(*fo.to_arrays(tx, params, state))
    jax.tree.map(np.testing.assert_array_equal, loaded, state)
    with pytest.raises(ValueError, match="code='companded' needs bits=8, got bits=4"):
        fo.quantize_state(fo.adam(0.1), 4, code="companded")
    old = fo.to_config(fo.quantize_state(fo.adam(0.1)))
    del old["value"]["code"]
    assert fo.from_config(old) == fo.quantize_state(fo.adam(0.1))


@pytest.mark.parametrize("bits", [1, 16])
def test_refuses_other_widths(bits):
    with pytest.raises(ValueError, match="bits must be 8 or 4"):
        fo.quantize_state(fo.adam(0.1), bits)


# The state: plain arrays, codes and scales together


def stepped(tx, params):
    return tx.update(params, tx.init(params), params)[1]


@each_width
def test_state_of_nnx_is_the_same(bits):
    """Also of leaves that are None, small, or so many elements that nnx's containers used to replace the scales."""
    tx = fo.quantize_state(fo.adam(0.1), bits, min_size=4096)
    model = nnx.Linear(64, 65, use_bias=False, rngs=nnx.Rngs(0))
    model.scale = nnx.Param(jnp.ones(3))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer, state = nnx.Optimizer(model, tx, wrt=nnx.Param), tx.init(params)

    def loss(model):
        return 0.05 * (jnp.sum(model.kernel**2) + jnp.sum(model.scale**2))

    for _ in range(2):
        updates, state = tx.update(jax.tree.map(lambda x: 0.1 * x, params), state, params)
        params = fo.apply_updates(params, updates)
        optimizer.update(model, nnx.grad(loss)(model))
    assert_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params, rtol=1e-6)


@each_width
def test_state_survives_maps_and_bytes(bits):
    params = {"w": jnp.linspace(-1, 1, 5 * 67).reshape(5, 67), "b": jnp.ones(3), "none": None}
    tx = fo.quantize_state(fo.chain(fo.masked(fo.adam(0.1), {"w": True, "b": False, "none": True})), bits, min_size=9)
    state = stepped(tx, params)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    restored = serialization.from_bytes(tx.init(params), serialization.to_bytes(state))
    mapped = jax.tree.map(np.asarray, state)
    for other in (restored, mapped):
        assert jax.tree.structure(other) == jax.tree.structure(state)
        assert_close(tx.update(params, other, params), tx.update(params, state, params))


def test_encode_and_decode_are_inverse():
    params = {"w": jnp.linspace(-1, 1, 64), "b": jnp.ones(3)}
    tx = fo.quantize_state(fo.adamw(0.1), min_size=9)
    state = stepped(tx, params)
    floats = tx.decode(state)
    assert jax.tree.structure(floats) == jax.tree.structure(tx.inner.init(params))
    assert_close(tx.encode(floats), state)


def test_refuses_states_that_are_not_its_own():
    params = {"w": jnp.linspace(-1, 1, 64)}
    tx = fo.quantize_state(fo.adam(0.1), min_size=9)
    state = stepped(tx, params)
    codes, moments = state.inner_state, tx.decode(state)
    wide = fo.tree.set(codes, mu={"w": jnp.zeros(64, jnp.int32)})
    cases = [
        (moments, "must be a QuantizeState.*got a tuple of 2"),
        (state._replace(scale=()), r"scales for each of \[0\].mu, \[0\].nu, got 0"),
        (
            state._replace(scale=({"w": None}, state.scale[1])),
            r"\[0\].mu\['w'\] has codes \(int8\) without their scale",
        ),
        (state._replace(inner_state=moments), r"\[0\].mu\['w'\]: codes of 8 bits must be int8 .* got float32"),
        (state._replace(inner_state=wide), "got int32"),
        (state._replace(scale=({"w": {"scale": 1.0}}, state.scale[1])), "has a dict in place of its scale"),
        (state._replace(scale=({"x": state.scale[0]["w"]}, state.scale[1])), "mu and its scale are not alike"),
    ]
    for other, message in cases:
        with pytest.raises(ValueError, match=message):
            tx.update(params, other, params)
    with pytest.raises(TypeError, match="got a QuantizeState"):
        tx.encode(state)


def test_set_refuses_floats_for_codes():
    params = {"w": jnp.linspace(-1, 1, 64), "b": jnp.ones(3)}
    tx = fo.quantize_state(fo.adam(0.1), min_size=9)
    state = stepped(tx, params)
    with pytest.raises(ValueError, match=r"mu holds codes \(int8\).*tx.encode"):
        fo.tree.set(state, mu=params)
    assert fo.tree.set(state, mu=state.inner_state[0].mu, count=3).inner_state[0].count == 3
    decoded = tx.decode(tx.encode(fo.tree.set(tx.decode(state), mu=params)))
    np.testing.assert_allclose(decoded[0].mu["w"], params["w"], atol=1 / 127)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("data", "model"), P(None, ("data", "model"))], ids=str)
def test_blocks_on_a_split_axis_stay_where_they_are(kind, spec):
    """A device encodes and decodes its own blocks, if it has whole ones; the codes are those of one device."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    tx, rng = fo.quantize_state(fo.adam(0.1)), np.random.default_rng(0)
    alone = {"w": jnp.asarray(rng.normal(size=(4, 1024)), "float32")}
    _, expected = jax.jit(tx.update)(alone, tx.init(alone), alone)
    with jax.set_mesh(mesh):
        params = jax.device_put(alone, NamedSharding(mesh, spec))
        state = jax.jit(tx.init, out_shardings=fo.state_shardings(tx, params))(params)
        program = jax.jit(tx.update).lower(params, state, params).compile()
        _, state = program(params, state, params)
    assert not collectives(program.as_text())
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.ndim < 2 or x.sharding.is_equivalent_to(params["w"].sharding, x.ndim)


def ranked(**options):
    return fo.quantize_state(fo.adam(0.1), 4, min_size=9, scales="rank1", **options)


MIXED = {
    "w": jnp.linspace(-1, 1, 64 * 66).reshape(64, 66),
    "odd": jnp.linspace(0.1, 1, 35).reshape(5, 7),
    "b": jnp.ones(16),
}


def test_rank_1_scales_are_for_matrices_of_second_moments():
    params = MIXED | {"column": jnp.ones((32, 1)), "small": jnp.ones((2, 2))}
    mu, nu = ranked().init(params).scale
    shapes = jax.tree.map(jnp.shape, nu)
    assert shapes["w"] == ((64, 1), (1, 66)) and shapes["odd"] == ((5, 1), (1, 7))
    assert shapes["b"] == (1,) and shapes["column"] == (1, 1) and nu["small"] is None
    assert all(x is None or isinstance(x, jax.Array) for x in mu.values())


def test_bytes_of_rank_1_scales():
    params = {"w": jax.ShapeDtypeStruct((1024, 1024), "float32")}
    rows = {
        scales: fo.explain(fo.quantize_state(fo.adam(1e-3), 4, scales=scales), params).state_bytes
        for scales in ("blocks", "rank1")
    }
    of_blocks = 4 * 1024 * 1024 // 128
    assert rows["blocks"] - rows["rank1"] == of_blocks - 4 * (1024 + 1024)


def test_states_with_rank_1_scales_are_stored_mapped_and_stacked():
    tx = ranked()
    state = stepped(tx, MIXED)
    restored = serialization.from_bytes(tx.init(MIXED), serialization.to_bytes(state))
    _, _, loaded = fo.from_arrays(*fo.to_arrays(tx, MIXED, state))
    for other in (restored, loaded, jax.tree.map(np.asarray, state), tx.encode(tx.decode(state))):
        assert jax.tree.structure(other) == jax.tree.structure(state)
        assert_close(tx.update(MIXED, other, MIXED), tx.update(MIXED, state, MIXED))
    two = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), MIXED)
    stacked = jax.vmap(lambda g: tx.update(g, tx.init(g), g)[1])(two)
    assert_close(jax.tree.map(lambda x: x[0], stacked), state)
    tree = fo.tree.map_params(tx, lambda _: "param", state)
    assert tree.inner_state[0].nu == dict.fromkeys(MIXED, "param")


def test_rank_1_scales_become_blocks_by_migration():
    """And back: what is stored is what the slots mean."""
    old, new = ranked(), fo.quantize_state(fo.adam(0.1), 4, min_size=9)
    state = stepped(old, MIXED)
    moved, _ = fo.migrate(state, old, new, MIXED)
    exact, there = (tx.decode(s)[0].nu["w"] for tx, s in ((old, state), (new, moved)))
    assert moved.scale[1]["w"].ndim == 2 and len(state.scale[1]["w"]) == 2
    np.testing.assert_allclose(there, exact, atol=float(jnp.max(exact)) / 16)


def test_nnx_keeps_rank_1_scales():
    model = nnx.Linear(64, 65, use_bias=False, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    tx = ranked()
    optimizer, state = nnx.Optimizer(model, tx, wrt=nnx.Param), tx.init(params)
    for _ in range(2):
        updates, state = tx.update(jax.tree.map(lambda x: 0.1 * x, params), state, params)
        params = fo.apply_updates(params, updates)
        optimizer.update(model, nnx.grad(lambda model: 0.05 * jnp.sum(model.kernel**2))(model))
    assert_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params, rtol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("data", None), P(None, "data"), P("data", "model")], ids=str)
def test_rank_1_scales_lie_beside_the_rows_and_columns(kind, spec):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    tx, rng = ranked(), np.random.default_rng(0)
    alone = {"w": jnp.asarray(rng.normal(size=(128, 64)), "float32")}
    updates, expected = jax.jit(tx.update)(alone, tx.init(alone), alone)
    with jax.set_mesh(mesh):
        params = jax.device_put(alone, NamedSharding(mesh, spec))
        state = jax.jit(tx.init, out_shardings=fo.state_shardings(tx, params))(params)
        new, after = jax.jit(tx.update)(params, state, params)
    for x, y in zip(jax.tree.leaves((new, after)), jax.tree.leaves((updates, expected)), strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
    rows = after.scale[1]["w"][0]
    assert rows.sharding.is_equivalent_to(NamedSharding(mesh, P(spec[0])), 2)
