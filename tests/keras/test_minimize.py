"""minimize and compute_gradients: what is differentiated by what, and what a loss may do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import keras
from functional_opt.keras import Variable
from functional_opt.keras.optimizers import SGD, Adam, RMSprop

from .helpers import BIAS, KERNEL, assert_close, make_variables

# p after two steps on p²/2 from p = 1 with a learning rate of 1/2, worked out by hand
BY_HAND = [
    (SGD(0.5), 0.5, 0.25),
    (SGD(0.5, momentum=0.5), 0.5, 0.0),  # a = -1/2; a = -1/4 - 1/4
    (SGD(0.5, momentum=0.5, nesterov=True), 0.25, -0.0625),  # a = -1/2, -1/4 - 1/8; p + a/2 - g/2
    (RMSprop(0.5, rho=0.75), 0.0, 0.0),  # √rms = 1/2
    (RMSprop(0.5, rho=0.75, momentum=0.5), 0.0, -0.5),
    (Adam(0.5), 0.5, 0.5 - 0.5 * (0.14 / 0.19) / np.sqrt(0.001249 / 0.001999)),
    (Adam(0.5, beta_1=0.0, beta_2=0.0), 0.5, 0.0),
    (Adam(0.5, beta_1=0.0, beta_2=0.0, amsgrad=True), 0.5, 0.25),  # v̂ stays at 1
]


@pytest.mark.parametrize(("opt", "first", "second"), BY_HAND, ids=[type(o).__name__ for o, *_ in BY_HAND])
def test_by_hand(opt, first, second):
    v = Variable(1.0, name="v")
    assert int(opt.minimize(lambda: v**2 / 2, [v])) == 1
    np.testing.assert_allclose(v.value, first, atol=1e-5)  # epsilon moves Adam's by 2e-6
    opt.minimize(lambda: v**2 / 2, [v])
    np.testing.assert_allclose(v.value, second, atol=1e-5)
    assert int(opt.iterations) == 2


def test_var_list_none_means_the_trainable_variables_that_are_read():
    a, b = make_variables()
    c, unread = Variable(2.0, trainable=False, name="c"), Variable(2.0, name="unread")
    opt = SGD(1.0)
    pairs = opt.compute_gradients(lambda: jnp.sum(a) * c + jnp.sum(b * jnp.ones_like(b)))
    assert all(v is w for (_, v), w in zip(pairs, (a, b), strict=True))
    assert_close([g for g, _ in pairs], [2 * np.ones(3), np.ones(1)])
    assert unread.value == 2.0


@pytest.mark.parametrize("fn", [jnp.tanh, jax.nn.gelu, lambda v: jax.jit(jnp.square)(v)])
def test_jax_functions_of_variables_are_no_variables_of_their_own(fn, caplog):
    v = Variable(KERNEL, name=f"v_{id(fn)}")  # a name that no trace has seen
    opt = Adam(0.1)
    opt.minimize(lambda: jnp.sum(fn(v)))
    assert not caplog.records
    assert len(opt.weights) == 3
    assert not np.array_equal(v.value, KERNEL)


def test_var_list_as_a_function_is_called_after_the_loss():
    made = []

    def loss():
        if not made:
            made.append(Variable(1.0, name="late"))
        return made[0] ** 2

    opt = SGD(0.25)
    opt.minimize(loss, lambda: made)
    opt.minimize(loss, lambda: tuple(made))
    assert made[0].value == 0.25
    made.clear()
    opt.minimize(loss)  # a variable that the loss makes is found, too
    assert made[0].value == 0.5


@pytest.mark.parametrize("var_list", [[], (), lambda: []])
def test_no_variables(var_list):
    v = Variable(1.0)
    with pytest.raises(ValueError, match="No variables to minimize"):
        SGD().minimize(lambda: v**2, var_list)


def test_what_is_no_variable():
    v = Variable(1.0)
    with pytest.raises(ValueError, match="var_list must hold variables, got Array"):
        SGD().minimize(lambda: v**2, [v, v.value])
    with pytest.raises(ValueError, match="the loss reads no trainable variable"):
        SGD().minimize(lambda: jnp.float32(1.0))


def test_a_vector_loss_is_summed_or_weighed():
    for grad_loss, weights in ((None, 1.0), (np.float64([1.0, 0.0, -1.0]), [1.0, 0.0, -1.0]), (2.0, 2.0)):
        v = Variable(KERNEL, name="v")
        SGD(0.5).minimize(lambda v=v: v**2, [v], grad_loss=grad_loss)
        np.testing.assert_allclose(v.value, KERNEL - KERNEL * weights)
    with pytest.raises(ValueError, match="broadcast"):
        SGD().minimize(lambda: v**2, [v], grad_loss=np.ones(2))


def test_a_loss_that_was_computed_already():
    v = Variable(KERNEL)
    for loss in (jnp.sum(v**2), 1.0, v, None):
        with pytest.raises(RuntimeError, match=r"loss must be a function of no arguments .*Write minimize\(lambda"):
            SGD().minimize(loss, [v])


@pytest.mark.parametrize("result", [None, 3.0, "high", jnp.int32(3), jnp.array(True), [jnp.float32(1.0)]])
def test_a_loss_that_returns_no_floats(result):
    v = Variable(1.0)
    with pytest.raises(TypeError, match="the loss must be an array of floats, got"):
        SGD().minimize(lambda: (v.value, result)[1], [v])


def test_a_loss_that_is_a_variable():
    v = Variable(KERNEL, name="v")
    SGD(0.5).minimize(lambda: v, [v])
    np.testing.assert_allclose(v.value, KERNEL - 0.5)


def test_batches_of_numpy_arrays():
    w, x = Variable(KERNEL, name="w"), np.float32([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    SGD(0.5).minimize(lambda: jnp.sum(x @ w + np.float32(2.0) * w[0]) + jnp.sum(x * w), [w])
    np.testing.assert_allclose(w.value, KERNEL - 0.5 * (2 * x.sum(0) + [4.0, 0.0, 0.0]))


def test_compute_gradients_moves_nothing():
    (kernel, bias), opt = make_variables(), SGD(0.5)
    pairs = opt.compute_gradients(lambda: jnp.sum(kernel**2), [bias, kernel])
    assert pairs[0][0] is None
    assert pairs[0][1] is bias
    np.testing.assert_allclose(pairs[1][0], 2 * KERNEL)
    assert (int(opt.iterations), opt.get_slot_names()) == (0, [])
    np.testing.assert_array_equal(kernel.value, KERNEL)
    opt.apply_gradients(pairs)
    np.testing.assert_allclose(kernel.value, 0.0, atol=1e-7)
    np.testing.assert_array_equal(bias.value, BIAS)


def test_a_loss_may_assign_to_what_is_not_trained():
    (kernel, _), mean = make_variables(), Variable(0.0, trainable=False, name="mean")
    seen = []

    def loss():
        seen.append(mean.assign(0.5 * mean + 0.5 * jnp.sum(kernel)).value)
        return jnp.sum(kernel) * mean

    opt = SGD(0.0)
    for var_list in ([kernel], None, lambda: [kernel]):
        mean.assign(0.0)
        opt.minimize(loss, var_list)
        assert float(mean) == 1.0
        opt.compute_gradients(loss, var_list)
        assert float(mean) == 1.5
    with pytest.raises(ValueError, match=r"the loss assigns to \['mean:0'\], which are being trained"):
        opt.minimize(loss, [kernel, mean])
    assert float(mean) == 1.5


def test_integers_have_no_gradient(caplog):
    v, n = Variable(1.0, name="v"), Variable(3, name="n")
    opt = Adam(0.5)
    opt.minimize(lambda: n * v)
    assert "'n:0'" in caplog.text
    np.testing.assert_allclose(v.value, 0.5, rtol=1e-5)
    assert int(n) == 3
    with pytest.raises(KeyError):
        opt.get_slot(n, "m")


def test_16_bit_variables():
    v = Variable(KERNEL, name="v", dtype="bfloat16")
    opt = Adam(0.125)
    opt.minimize(lambda: jnp.sum(v**2))
    assert v.dtype == jnp.bfloat16
    assert opt.get_slot(v, "m").dtype == jnp.float32
    np.testing.assert_array_equal(v.value, KERNEL - 0.125 * np.sign(KERNEL))


def test_transformed_and_looped_losses():
    w = Variable(KERNEL, name="w")

    def loss():
        def body(total, x):
            return total + x * jnp.sum(w), None

        scanned, _ = jax.lax.scan(jax.checkpoint(body), 0.0, jnp.arange(3.0))
        return scanned + jnp.sum(jax.vmap(lambda x: jnp.sum(x * w))(jnp.ones(2)))

    SGD(1.0).minimize(loss)
    np.testing.assert_allclose(w.value, KERNEL - 5.0)


def test_no_tracer_is_left_behind():
    (kernel, bias), opt = make_variables(), keras.optimizers.SGD(0.5)
    with jax.checking_leaks():
        opt.minimize(lambda: jnp.sum(kernel**2))
        opt.minimize(lambda: jnp.sum(bias**2), [bias, kernel])
    np.testing.assert_allclose(kernel.value, 0.0, atol=1e-7)
