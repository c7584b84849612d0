"""What was taken out of a variable stays valid; what nobody took is reused in place."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import keras
from functional_opt.keras.optimizers import SGD, Adam

from .helpers import KERNEL, assert_close, make_variables


def loss(variables):
    return sum(jnp.sum(v**2) for v in variables)


def by_minimize(opt, variables):
    return lambda: opt.minimize(lambda: loss(variables), variables)


def by_train_step(opt, variables):
    return opt.make_train_step(lambda: loss(variables), variables)


ways = pytest.mark.parametrize("way", [by_minimize, by_train_step])

TAKEN = {
    "value": lambda v: v.value,
    "jnp.asarray": jnp.asarray,
    "np.asarray": np.asarray,
    "view": lambda v: np.asarray(v.value)[1:],
    "reshaped view": lambda v: np.asarray(v.value).reshape(3, 1),
    "np.from_dlpack": lambda v: np.from_dlpack(v.value),
    "jnp.from_dlpack": lambda v: jnp.from_dlpack(v.value),
    "memoryview": lambda v: memoryview(v.value),
    "slice": lambda v: v[:],
    "ravel": lambda v: jnp.ravel(v.value),
    "device_put": lambda v: jax.device_put(v.value),
    "jit": lambda v: jax.jit(lambda x: x)(v.value),
    "pytree": lambda v: jax.tree.map(lambda x: x, v),
    "copy": copy.copy,
    "in a list": lambda v: [v.value],
}


@ways
@pytest.mark.parametrize("take", TAKEN.values(), ids=TAKEN)
def test_what_was_taken_stays_valid(way, take):
    variables = make_variables()
    step = way(SGD(0.1), variables)
    step()
    before = variables[0].numpy()
    taken = take(variables[0])
    expected = np.array(take(keras.Variable(before)))
    step()
    step()
    np.testing.assert_array_equal(np.array(taken), expected)
    assert not np.array_equal(variables[0].numpy(), before)


@ways
def test_slots_and_iterations_taken_stay_valid(way):
    variables = make_variables()
    opt = Adam(0.1)
    step = way(opt, variables)
    step()
    slot = opt.get_slot(variables[0], "m")
    taken = slot.value, opt.iterations.value, np.asarray(opt.iterations.value)
    before = slot.numpy(), 1, 1
    step()
    for x, y in zip(taken, before, strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.array_equal(slot.numpy(), before[0])
    assert int(opt.iterations) == 2


@ways
def test_variables_that_share_an_array(way):
    shared = jnp.array(KERNEL)
    a, b = (keras.Variable(np.zeros(3), name=n).assign(shared) for n in "ab")
    way(SGD(0.1), [a, b])()
    way(SGD(0.1), [a])()
    assert_close([a.value, b.value, shared], [np.float32(0.64) * KERNEL, np.float32(0.8) * KERNEL, KERNEL])
    c = keras.Variable(np.zeros(3), name="a").assign(a)
    way(SGD(0.1), [a])()
    np.testing.assert_allclose(c.value, np.float32(0.64) * KERNEL, rtol=1e-6)


def test_a_gradient_that_is_the_value():
    (v, _), opt = make_variables(), SGD(0.5)
    gradient = v.value
    opt.apply_gradients([(gradient, v)])
    opt.apply_gradients([(v, v)])
    np.testing.assert_allclose(v.value, 0.25 * KERNEL)
    np.testing.assert_array_equal(gradient, KERNEL)


@ways
@pytest.mark.parametrize("opt_class", [SGD, Adam])
def test_memory_is_reused_where_nobody_holds_it(way, opt_class):
    variables = make_variables()
    opt = opt_class(0.1)
    step = way(opt, variables)
    step()
    step()
    owned = [*variables, *opt.weights[1:]]
    # these see the same buffers without being seen, and so tell whether those are given away
    buffers = [v.value.addressable_data(0) for v in owned]
    held = variables[1].value
    step()
    assert [b.is_deleted() for b in buffers] == [v is not variables[1] for v in owned]
    np.testing.assert_array_equal(held, buffers[1])


def test_a_step_without_copies_leaves_no_arrays_behind():
    variables = make_variables()
    opt = Adam(0.1)
    step = by_train_step(opt, variables)
    step()
    before = len(jax.live_arrays())
    for _ in range(5):
        step()
    assert len(jax.live_arrays()) == before
