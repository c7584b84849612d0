"""Degenerate input, for every transformation: wrong states, zero, huge and tiny gradients, rates of 0."""

import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo
from functional_opt.core.norms import all_finite
from functional_opt.core.value import value

from ..helpers import assert_same_types, at, make_grads, make_params
from .cases import OPTIMIZERS, PLAIN, each_plain_case

OTHERS = fo.chain(fo.scale_by_amsgrad(), fo.scale_by_schedule(lambda count: 0.1), fo.trace(0.9), fo.scale(0.1))
OTHER_PARAMS = {"dense": {"bias": jnp.ones(5), "kernel": jnp.ones((4, 3))}, "scale": jnp.ones(())}


@each_plain_case
def test_a_wrong_state_is_refused_in_words(case):
    """That of other rules, none at all, containers that lost their class."""
    tx, params, grads = case.tx(), make_params(), at(make_grads(1), 0)
    own, strange = (jax.eval_shape(t.init, params) for t in (tx, OTHERS))
    bare = [tuple(own), list(own)] if isinstance(own, tuple) else []
    for state in (strange, *strange, None, {}, 3.0, *bare):
        keeps_nothing = not jax.tree.leaves(own) and not jax.tree.leaves(state)  # any nothing will do for it
        if keeps_nothing or type(state) is type(own) and len(state) == len(own):
            continue
        with pytest.raises(ValueError, match=r"the state must be .*, as .*init makes it; got .*tx\.init\(params\)"):
            jax.eval_shape(tx.update, grads, state, params)


@each_plain_case
def test_the_state_of_other_params_is_refused_by_path(case):
    tx, params, grads = case.tx(), make_params(), at(make_grads(1), 0)
    own, other = (jax.eval_shape(tx.init, p) for p in (params, OTHER_PARAMS))
    path = r"has shape \(13,\)" if case.name == "flatten" else r"\['dense'\]\['(bias|kernel)'\]"
    try:
        _, after = jax.eval_shape(tx.update, grads, other, params)
    except ValueError as e:
        assert re.search(path, str(e))
    else:
        assert_same_types(after, own)  # what was of another shape is not read


def without_scale(tree):
    return {"dense": tree["dense"]}


LEAF = r"\['scale'\]|\['dense'\]\['(bias|kernel)'\]"
ONLY_LOOK = "identity", "chain", "stateless", "snapshot", "monitor", "measure_with_ema", "gradient_noise_scale"
"""Transformations that pass on whatever updates they get."""


@each_plain_case
def test_trees_that_differ_are_named_with_the_leaf(case):
    """Not by JAX, whose error says neither which of the trees lacks a leaf nor which leaf."""
    tx, params, grads = case.tx(), make_params(), at(make_grads(1), 0)
    state = jax.eval_shape(tx.init, params)
    for updates, now in ((without_scale(grads), params), (grads, without_scale(params)), ((grads, ()), params)):
        if case.name not in ONLY_LOOK:
            with pytest.raises(ValueError, match=rf"(updates|params|state) has .*({LEAF})|rule '.*' matches no leaf"):
                jax.eval_shape(tx.update, updates, state, now)


@each_plain_case
def test_complex_updates_of_real_params_are_refused(case):
    """A cast would drop their imaginary parts; JAX only warns of it."""
    tx, params = case.tx(), make_params()
    grads = jax.tree.map(lambda g: g + 1j, at(make_grads(1), 0))
    if case.name not in (*ONLY_LOOK, "hutchinson_estimator_diag_hessian") or case.name == "stateless":
        with pytest.raises(TypeError, match=rf"updates.*({LEAF})? is complex, but (params|the .*state) has float32"):
            jax.eval_shape(tx.update, grads, jax.eval_shape(tx.init, params), params)


@value
class table(fo.schedules.Schedule):
    """A schedule that is a leaf: its values in turn, the last for ever."""

    values: Any

    def __call__(self, count):
        return self.values[jnp.minimum(count, len(self.values) - 1)]


N = 8
ONES = np.ones(N, np.float32)
GRADIENTS = {  # sizes in turn, over and over
    "zero": (1500, 0 * ONES),
    "late": (N, np.float32([0, 0, 1, 1, 0, 1, 0, 1])),
    "huge": (N, np.float32([1e30, -1e30, 1e30, 0, 1e30, 1, -1e30, 1e30])),
    "tiny": (N, np.float32([1e-40, -1e-38, 1e-30, 1e-40, 0, 1e-20, -1e-40, 1e-40])),
    "mixed": (N, np.float32([1, 1e30, 1, 1e-40, -1, 1e30, 0, 1])),
}
RATES = {
    "rate 0": 0 * ONES,
    "warm-up": np.float32([0, 0.25, 0.5, 0.75, 1, 1, 1, 1]),
    "to 0": np.float32([1, 0.75, 0.5, 0.25, 0.1, 0, 0, 0]),
}
PATTERN = {"w": jnp.float32([[1, -2], [0, 0.5], [3, 1]]), "b": jnp.float32([-1, 0]), "none": jnp.zeros((0, 3))}
START = {"w": jnp.float32([[1, 2], [-1, 0.5], [3, 1]]), "b": jnp.float32([2, -1]), "none": jnp.zeros((0, 3))}
RULES = [case for case in OPTIMIZERS if case in PLAIN]


@jax.jit
def steps(tx, n, sizes, start):
    """Params after n steps, whether all were finite, and the largest that an update has been."""
    extra = {"n": np.zeros((), jax.dtypes.float0)}  # the gradient of a whole number

    def step(t, carry):
        params, state, finite = carry
        # as if from elsewhere: XLA would take (size·0)² for size²·0
        grads = jax.lax.optimization_barrier(jax.tree.map(lambda x: sizes[t % N] * x, PATTERN))
        updates, state = tx.update(grads | extra, state, params)
        finite &= all_finite((updates, fo.apply_updates(params, updates)))
        return fo.apply_updates(params, updates), state, finite

    start = start | {"n": jnp.int32(3)}
    params, _, finite = jax.lax.fori_loop(0, n, step, (start, tx.init(start), jnp.array(True)))
    return params, finite


@pytest.mark.parametrize("case", RULES, ids=repr)
def test_degenerate_numbers(case):
    """Zero gradients for long, then others; such as float32 cannot square; rates of 0; leaves without elements."""
    scheduled = "learning_rate" in inspect.signature(case.make).parameters
    rate = case.numbers.get("learning_rate") or 0.1

    def run(values, n, sizes):
        try:
            tx = case.tx(learning_rate=table(rate * values)) if scheduled else case.tx()
        except TypeError:
            tx = case.tx()
        return steps(tx, n, sizes, START)

    bad = [name for name, (n, sizes) in GRADIENTS.items() if not run(ONES, n, sizes)[1]]
    bad += [name for name, rates in RATES.items() if scheduled and not run(rates, 20, GRADIENTS["late"][1])[1]]
    assert not bad


@each_plain_case
def test_no_buffer_is_given_twice(case):
    """Params and a fresh state can be donated together."""
    tx, params = case.tx(), make_params()
    arrays = [x for x in jax.tree.leaves((params, tx, tx.init(params))) if isinstance(x, jax.Array) and x.size]
    pointers = [x.unsafe_buffer_pointer() for x in arrays if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    assert len(set(pointers)) == len(pointers)
