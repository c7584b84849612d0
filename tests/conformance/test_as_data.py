"""Every transformation is a value: its numbers are inputs of a jitted step, it copies, prints and compares."""

import copy
import dataclasses
import functools
import inspect
import pickle
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functional_opt as fo

from ..helpers import assert_close, at, make_grads, make_params, train_eagerly
from . import case as pieces
from . import cases
from .cases import CASES, PLAIN, each_case, each_plain_case
from .programs import quick

with_numbers = pytest.mark.parametrize("case", [case for case in CASES if case.vary], ids=repr)
plain_with_numbers = pytest.mark.parametrize("case", [case for case in PLAIN if case.vary], ids=repr)


def makes_a_transformation(x):
    result = x if inspect.isclass(x) else typing.get_type_hints(x).get("return") if inspect.isfunction(x) else None
    return inspect.isclass(result) and issubclass(result, fo.GradientTransformation)


def test_every_public_transformation_has_a_case():
    public = {x.__name__ for name, x in vars(fo).items() if not name.startswith("_") and makes_a_transformation(x)}
    without = {"GradientTransformation", "shard"}  # which needs a mesh: see tests/transforms/test_shard.py
    assert public - without == {case.name.split("-")[0] for case in CASES}


def test_case_names_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)


def others(case):
    """The arguments of `case.vary` a little changed, 0.0 and whole numbers within their range too."""
    return {name: x + 1 if isinstance(x, int) else 0.99 * x + 1e-4 for name, x in case.numbers.items()}


@with_numbers
def test_new_numbers_do_not_compile_again(case):
    """And do the same as numbers of Python; `test_vmap_over_the_transformation` shows that of plain ones."""
    traces = []

    @jax.jit
    def step(tx, grads, params):
        traces.append(case)
        return tx.update(grads, tx.init(params), params)

    params, grads = make_params(), at(make_grads(1), 0)
    for numbers in ({}, others(case)):
        tx, peer = case.tx(**numbers), quick(case, **numbers)
        if case in PLAIN:
            step.trace(tx, grads, params)
            continue
        expected = peer.update(grads, peer.init(params), params)
        # 1 − b2 of a traced float32 b2 = 0.999 is 2e-5 away from that of Python's
        assert_close(step(tx, grads, params), expected, rtol=1e-4, atol=1e-7)
    assert len(traces) == 1


def test_two_hundred_learning_rates_compile_once():
    traces = []

    @jax.jit
    def step(tx, grads):
        traces.append(tx)
        return tx.update(grads, tx.init(grads))[0]

    grads = at(make_grads(1), 0)
    rates = np.linspace(1e-4, 1.0, 200).tolist()
    updates = [step(fo.adam(rate, b1=1 - rate), grads)["scale"] for rate in rates]
    np.testing.assert_allclose(np.abs(updates), rates, rtol=1e-4)
    assert len(traces) == 1


@each_case
def test_equal_ones_share_a_compilation(case):
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def step(tx, x):
        traces.append(tx)
        return x

    step.trace(case.tx(), 1.0), step.trace(case.tx(), 1.0)
    assert len(traces) == 1
    if case.vary:
        step.trace(case.tx(**others(case)), 1.0)
        assert len(traces) == 2


@plain_with_numbers
def test_vmap_over_the_transformation(case):
    params, grads = make_params(), make_grads(2)
    alternatives = {}, others(case)
    stacked = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(y) for y in x]), *(case.tx(**x) for x in alternatives))
    state = jax.vmap(lambda tx: tx.init(params))(stacked)
    step = jax.jit(jax.vmap(lambda tx, g, state: tx.update(g, state, params), in_axes=(0, None, 0)))
    for i in range(2):
        updates, state = step(stacked, at(grads, i), state)
    for i, numbers in enumerate(alternatives):
        one = train_eagerly(quick(case, **numbers), params, grads, steps=2)
        assert_close((at(updates, i), at(state, i)), one, rtol=1e-4, atol=1e-6)


ACT_LATE = "rprop", "acprop", "adopt", "spam", "MultiSteps", "reduce_on_plateau", "zclip", "adagc"
"""In which some number has an effect only from the third step on."""


@plain_with_numbers
def test_gradient_of_a_hyperparameter(case):
    """Against central differences, in float64, through the constructor; those of an epsilon of 1e-4 are 1e-5 off."""
    steps = 3 if case.name.removeprefix("scale_by_").startswith(ACT_LATE) else 2
    with jax.enable_x64(True):
        params, grads = (jax.tree.map(lambda x: np.asarray(x, np.float64), t) for t in (make_params(), make_grads(3)))

        @jax.jit
        @jax.value_and_grad
        def outcome(numbers):
            tx, current = case.tx(**numbers), params
            state = tx.init(current)
            for i in range(steps):  # a loop compiles faster than a scan
                updates, state = tx.update(at(grads, i), state, current)
                current = fo.apply_updates(current, jax.tree.map(lambda u: case.pace * u, updates))
            return sum(jnp.sum(u * p) for u, p in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True))

        numbers = {name: x for name, x in others(case).items() if not isinstance(x, int)}
        _, slopes = outcome(numbers)
        for name, x in numbers.items():
            (lower, _), (upper, _) = (outcome({**numbers, name: x + h}) for h in (-1e-6, 1e-6))
            if not case.name.endswith("bf16"):  # where rounding makes steps of what is stored
                np.testing.assert_allclose(slopes[name], (upper - lower) / 2e-6, rtol=2e-5, atol=1e-6, err_msg=name)
            assert np.isfinite(slopes[name])


@each_plain_case
def test_within_others(case):
    """Alone, and as a link, the inside of a mask or a group, ours or Optax's, it does the same."""
    tx, params, grads = quick(case), make_params(), make_grads(2)
    expected, _ = train_eagerly(tx, params, grads, steps=2)
    for outer in (
        fo.chain(optax.identity(), tx, optax.scale(1.0)),
        fo.named_chain(("first", optax.identity()), ("second", tx)),
        optax.chain(optax.identity(), tx),
        fo.masked(tx, True),
        fo.partition({"all": tx}, "all"),
        fo.GradientTransformation(*tx),
    ):
        updates, _ = train_eagerly(outer, params, grads, steps=2)
        assert_close(updates, expected, rtol=1e-6)


OURS_AND_OPTAX = [(case, library) for case in CASES for library in (fo, optax) if library is fo or case in PLAIN]


@pytest.mark.parametrize("case, library", OURS_AND_OPTAX, ids=lambda x: getattr(x, "__name__", repr(x)))
def test_masked_leaves_pass_through(case, library):
    params, grads = make_params(), make_grads(1)
    tx = library.masked(quick(case), {"dense": {"bias": False, "kernel": True}, "scale": True})
    updates, state = train_eagerly(tx, params, grads)
    assert_close(updates["dense"]["bias"], at(grads, 0)["dense"]["bias"])
    alone, alone_state = train_eagerly(quick(case), without_leaf(params), without_leaf(grads))
    del updates["dense"]["bias"]
    assert_close(updates, alone, rtol=1e-6)
    assert_close(jax.tree.leaves(state), jax.tree.leaves(alone_state), rtol=1e-6)


def without_leaf(tree):
    return {**tree, "dense": {"kernel": tree["dense"]["kernel"]}}


@each_case
def test_extra_arguments_are_taken(case):
    tx, params, grads = quick(case), make_params(), make_grads(1)
    with_extra = train_eagerly(tx, params, grads, value=jnp.ones([]), value_fn=jnp.sum, anything=None)
    assert_close(with_extra, train_eagerly(tx, params, grads))


NAMES = {}
for module in (fo.schedules, fo.experimental, fo, pieces, cases.free, cases.guard, cases):
    NAMES |= vars(module)


@each_case
def test_copies_prints_and_compares(case):
    tx = case.tx()
    assert tx == case.tx() and hash(tx) == hash(case.tx())
    for twin in (
        pickle.loads(pickle.dumps(tx)),
        copy.deepcopy(tx),
        copy.copy(tx),
        eval(repr(tx), NAMES),
        dataclasses.replace(tx),
        jax.tree.map(lambda x: x, tx),
    ):
        assert twin == tx and hash(twin) == hash(tx) and repr(twin) == repr(tx)
    with pytest.raises(dataclasses.FrozenInstanceError):
        tx.anything = 1.0
    if case.vary:
        assert tx != case.tx(**others(case))


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "aggregate"], ids=repr)
def test_a_state_of_its_own_on_each_device(case):
    """Local SGD: inside `shard_map`, a loop carries params and a state that differ among the devices."""
    tx, mesh = case.tx(), jax.make_mesh((4,), ("replica",), axis_types=(jax.sharding.AxisType.Auto,))
    several = jax.tree.map(lambda x: jnp.stack([x] * 4), make_params())

    def local(params, grads):
        params, grads = (jax.tree.map(lambda x: x[0], tree) for tree in (params, grads))

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(grads, state, params)
            return (fo.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=2)
        return jax.tree.map(lambda x: x[None], params)

    rows = jax.sharding.PartitionSpec("replica")
    jax.eval_shape(jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows), several, several)
