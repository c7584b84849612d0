"""What holds for every transformation, whatever it computes: dtypes, shapes, shardings, odd leaves, counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from functional_opt import apply_updates

from ..helpers import (
    INT32_MAX,
    assert_close,
    assert_finite,
    assert_same_types,
    at,
    make_grads,
    make_params,
    structs,
    train_eagerly,
    without_bias,
)
from . import cases_free as free
from . import cases_linesearch as linesearch
from . import cases_precision as precision
from .cases import CASES, OPTIMIZERS, PLAIN, each_case, each_plain_case
from .programs import quick

DTYPES = (  # of params and gradients
    ("bfloat16", "float32"),
    ("float32", "float32"),
    ("float32", "bfloat16"),
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
)
PLAIN_DTYPES = "float32", "int32", "uint32", "int8", "uint8", "bool"  # of states; bfloat16 too, where asked for


def each_of(cases, *dtypes):
    """The plain cases with all the dtypes, others with the first: variants of a rule round as it does."""
    pairs = [(case, dtype) for case in cases for dtype in (dtypes if case in PLAIN else dtypes[:1])]
    return pytest.mark.parametrize("case, dtype", pairs, ids=str)


@each_of(CASES, *DTYPES)
def test_types_are_fixed_at_init(case, dtype):
    """So that a step can be scanned; the transformation is traced too, and reading a number to the host raises."""

    def run(tx, params, grads):
        def step(carry, g):
            params, state = carry
            updates, after = tx.update(g, state, params)
            assert_same_types(after, state)
            if case in OPTIMIZERS:
                assert_same_types(updates, params)
            return (apply_updates(params, updates), after), None

        return jax.lax.scan(step, (params, tx.init(params)), grads)

    jax.eval_shape(run, case.tx(), make_params(dtype[0]), make_grads(2, dtype[1]))


@each_case
def test_states_are_plain_arrays(case):
    """Which every checkpoint library can take: no empty arrays, no keys, no numbers of Python, no strange dtypes."""
    for path, x in jax.tree_util.tree_leaves_with_path(case.tx().init(make_params())):
        assert isinstance(x, jax.Array) and x.size, jax.tree_util.keystr(path)
        assert x.dtype in (*PLAIN_DTYPES, "bfloat16"), f"{jax.tree_util.keystr(path)}: {x.dtype}"


def sharded(mesh, tree):
    def leaf(x):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec("data") if jnp.ndim(x) else PartitionSpec()))

    return jax.tree.map(leaf, tree)


@each_plain_case
def test_sharding_is_kept_and_buffers_donated(case):
    """Over four devices with automatic sharding; a donated buffer that could not be used would warn."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    params, grads = sharded(mesh, make_params()), sharded(mesh, at(make_grads(1), 0))

    def on_all(x):
        """What is made without params is on one device, and free to go to all."""
        return x if x.committed else jax.device_put(x, NamedSharding(mesh, PartitionSpec()))

    @functools.partial(jax.jit, donate_argnums=(1, 2))
    def step(tx, params, state, grads):
        updates, state = tx.update(grads, state, params)
        return apply_updates(params, updates), state

    tx = case.tx()
    with jax.transfer_guard_device_to_host("disallow"):  # the CPU has nothing to guard, an accelerator has
        state = jax.tree.map(on_all, tx.init(params))
        before = jax.tree.map(lambda x: x.sharding, (params, state))
        new = step(tx, params, state, grads)
        new = step(tx, *new, grads)
    for (path, x), sharding in zip(jax.tree_util.tree_leaves_with_path(new), jax.tree.leaves(before), strict=True):
        assert x.sharding.is_equivalent_to(sharding, x.ndim), jax.tree_util.keystr(path)


@each_case
def test_sharding_in_types_is_kept(case):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params, grads = sharded(mesh, make_params()), sharded(mesh, at(make_grads(1), 0))
        tx = case.tx()
        before = jax.eval_shape(tx.init, params)
        updates, after = jax.eval_shape(tx.update, grads, before, params)
    assert specs(after) == specs(before)
    assert specs(updates) == specs(params)


def specs(tree):
    """How every axis of every leaf is sharded, with the leaf's path."""
    return {
        jax.tree_util.keystr(path): [*(x.sharding.spec if x.sharding else ()), None, None][: x.ndim]
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


ROUND_OTHERWISE = (*precision.STEP_TO_16_BITS, *linesearch.STOP_AT_ROUNDING)


@each_of([c for c in CASES if not c.name.startswith(ROUND_OTHERWISE)], "bfloat16", "float16")
def test_16_bit_is_close_to_float32(case, dtype):
    rtol = {"bfloat16": 0.01, "float16": 0.001}[dtype]
    params, grads = make_params(dtype), make_grads(3, dtype)
    exact = functools.partial(jax.tree.map, lambda x: x.astype("float32"))
    updates, state = train_eagerly(quick(case), params, grads, steps=3)
    expected, expected_state = train_eagerly(quick(case), exact(params), exact(grads), steps=3)
    assert_close(updates, expected, rtol=rtol)
    assert_close(state, expected_state, rtol=rtol)


@each_of(CASES, "float32", "bfloat16", "float16")
def test_zero_gradients(case, dtype):
    params, grads = make_params(dtype), jax.tree.map(jnp.zeros_like, make_grads(2, dtype))
    assert_finite(train_eagerly(quick(case), params, grads, steps=2))
    nowhere = jax.tree.map(jnp.zeros_like, params)
    updates, _ = train_eagerly(quick(case), nowhere, grads, steps=2)
    assert_close(updates, jax.tree.map(jnp.zeros_like, updates))


@each_case
def test_none_in_gradients_is_no_update(case):
    tx, params, grads = quick(case), make_params(), make_grads(2)
    _, state = train_eagerly(tx, params, grads)
    updates, after = tx.update(without_bias(at(grads, 1)), state, params)
    assert updates["dense"]["bias"] is None
    assert_close(apply_updates(params, updates)["dense"]["bias"], params["dense"]["bias"])
    slots = [
        [x for path, x in jax.tree_util.tree_leaves_with_path(s) if is_slot_of_bias(jax.tree_util.keystr(path))]
        for s in (state, after)
    ]
    assert_close(slots[1], slots[0])
    assert_same_types(after, state)


def is_slot_of_bias(path):
    return "'bias'" in path and ".grad[" not in path  # a line search's gradient is that at the new params


@each_case
def test_none_in_params(case):
    params, grads = without_bias(make_params()), without_bias(make_grads(2))
    updates, state = train_eagerly(quick(case), params, grads, steps=2)
    assert updates["dense"]["bias"] is None
    assert_finite((updates, state))


@each_case
@pytest.mark.parametrize("empty", [{}, (), {"dense": {}}], ids=repr)
def test_empty_trees(case, empty):
    tx = quick(case)
    updates, state = tx.update(empty, tx.init(empty), empty)
    assert updates == empty
    assert_same_types(state, tx.init(empty))


@each_case
def test_abstract_trees(case):
    tx, params, grads = case.tx(), make_params(), at(make_grads(1), 0)
    state = tx.init(params)
    assert_same_types(jax.eval_shape(tx.init, params), state)
    start = tx.init(structs(params))
    assert_same_types(start, state)
    if not starts_from_params(case):
        assert_close(start, state)
    updates, after = jax.eval_shape(tx.update, structs(grads), structs(state), structs(params))
    assert_same_types(structs(updates), structs(params))
    assert_same_types(structs(after), structs(state))


def starts_from_params(case):
    names = (
        "schedule_free",
        "madgrad",
        "sam",
        "lookahead",
        "outer_steps",
        "snoo",
        "muown",
        "weight_normalized",
        "params_ema-",
        *free.KEEP_THEIR_START,
    )
    return case.name.removeprefix("scale_by_").startswith(names)


@each_case
def test_complex_turns_with_the_plane(case):
    """Rotated params and gradients give rotated updates: second moments are of |g|², signs are g/|g|."""
    tx, turn = quick(case), np.exp(0.7j).astype(np.complex64)

    def run(turn):
        rotate = functools.partial(jax.tree.map, lambda x: x * turn)
        return train_eagerly(tx, rotate(make_params()), rotate(make_grads(2)), steps=2)

    expected, _ = run(1.0)
    updates, state = run(turn)
    assert_same_types(state, tx.init(jax.tree.map(lambda x: x * turn, make_params())))
    if (
        case.name == "scale_by_lion-smooth"
        or case.name.endswith("bf16")
        or case.name.startswith(precision.STORE_REAL)
    ):
        assert_finite(updates)  # tanh does not turn; a state_dtype is for real leaves
    else:
        assert_close(updates, jax.tree.map(lambda u: turn * u, expected), rtol=1e-4, atol=1e-5)


@each_case
def test_counts_saturate(case):
    tx, params, grads = quick(case), make_params(), at(make_grads(1), 0)

    def at_the_end(path, x):
        return jnp.full_like(x, INT32_MAX) if is_count(path) else x

    state = jax.tree_util.tree_map_with_path(at_the_end, tx.init(params))
    updates, after = tx.update(grads, state, params)
    assert_finite(updates)
    for path, x in jax.tree_util.tree_leaves_with_path(after):
        assert not is_count(path) or (x.dtype == jnp.int32 and x in (0, INT32_MAX))


def is_count(path):
    return jax.tree_util.keystr(path[-1:]) in (".count", ".gradient_step", ".notfinite_count", ".total_notfinite")
