"""Variables of other libraries: Keras's, Flax's and whatever has `value`, trained beside ours."""

import copy
import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt.keras import Variable
from functional_opt.keras.optimizers import SGD, Adam

from .helpers import KERNEL, assert_close

os.environ["KERAS_BACKEND"] = "jax"
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of what they import
    keras = pytest.importorskip("keras")
    nnx = pytest.importorskip("flax.nnx")


class WithAssign:
    """A variable as someone else might have it."""

    def __init__(self, value):
        self._x = jnp.array(value)

    @property
    def value(self):
        return self._x

    def assign(self, value):
        self._x = value


class WithValue:
    def __init__(self, value):
        self.value, self.name = jnp.array(value), "mine"


KINDS = {
    "ours": lambda x: Variable(x, name="ours"),
    "keras": lambda x: keras.Variable(x, name="keras"),
    "nnx": nnx.Param,
    "assign": WithAssign,
    "value": WithValue,
}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def read(v):
    return v[...] if isinstance(v, nnx.Variable) else v.value


def all_kinds():
    return [make(jnp.array(KERNEL)) for make in KINDS.values()]


def loss(variables):
    return sum(jnp.sum((i + 1) * read(v) ** 2) for i, v in enumerate(variables))


def test_all_kinds_in_one_step():
    variables, opt = all_kinds(), SGD(0.125, momentum=0.5)
    step = opt.make_train_step(lambda: loss(variables), variables)
    value, velocity = [np.float32(KERNEL)] * 5, [0.0] * 5
    for train in (
        lambda: opt.minimize(lambda: loss(variables), variables),
        lambda: opt.minimize(lambda: loss(variables), lambda: variables),
        lambda: opt.apply_gradients(opt.compute_gradients(lambda: loss(variables), variables)),
        lambda: opt.apply_gradients([(2.0 * (i + 1) * read(v), v) for i, v in enumerate(variables)]),
        lambda: opt.apply([2.0 * (i + 1) * read(v) for i, v in enumerate(variables)], variables),
        step,
        step,
    ):
        train()
        for i in range(5):
            velocity[i] = 0.5 * velocity[i] - 0.125 * 2 * (i + 1) * value[i]
            value[i] = value[i] + velocity[i]
        assert_close([np.array(read(v)) for v in variables], value)
        assert_close([opt.get_slot(v, "momentum").numpy() for v in variables], velocity)
    assert int(opt.iterations) == 7


def test_whose_variables_the_user_sees():
    variables, seen = all_kinds(), []
    note = lambda gv: (seen.append([v for _, v in gv]), gv)[1]  # noqa: E731
    opt = SGD(0.1, gradient_aggregator=note, gradient_transformers=[note])
    pairs = opt.compute_gradients(lambda: loss(variables), variables)
    opt.apply_gradients(pairs)
    opt.make_train_step(lambda: loss(variables), variables)()
    for given in ([v for _, v in pairs], *seen):
        assert all(x is y for x, y in zip(given, variables, strict=True))
    assert len(seen) >= 4


def test_by_itself_it_finds_those_of_keras():
    variables = all_kinds()
    frozen, unread = keras.Variable(2.0, trainable=False), keras.Variable(2.0)
    pairs = SGD().compute_gradients(lambda: loss(variables) * frozen)
    assert [v for _, v in pairs if v is variables[0] or v is variables[1]] == [v for _, v in pairs]
    assert_close([np.array(g) for g, _ in pairs], [4 * KERNEL, 8 * KERNEL])
    pairs = SGD().compute_gradients(lambda: loss(variables), [variables[1], unread])
    assert pairs[1][0] is None and pairs[1][1] is unread


@kinds
def test_every_method_takes_them(make):
    v, other = make(jnp.array(KERNEL)), make(jnp.array(KERNEL))
    opt = Adam(0.5, weight_decay=0.5, use_ema=True, ema_momentum=0.5)
    opt.exclude_from_weight_decay([v])
    opt.build([v, other])
    opt.apply([np.zeros(3), np.zeros(3)])
    assert_close([np.array(read(x)) for x in (v, other)], [KERNEL, 0.75 * KERNEL])
    opt.apply([np.ones(3), np.ones(3)])
    opt.finalize_variable_values([v])
    moved = KERNEL - 0.5 * (0.1 / 0.19) * ((1 - 0.999**2) / 0.001) ** 0.5
    assert_close(np.array(read(v)), np.float32(0.5 * KERNEL + 0.5 * moved))
    with pytest.raises(KeyError, match="there is no slot 'm'"):
        opt.get_slot(make(jnp.array(KERNEL)), "m")
    new, _ = opt.stateless_apply([w.value for w in opt.variables], [np.ones(3)] * 2, [np.ones(3)] * 2)
    assert (np.array(new) < 1).all() and opt.iterations.value == 2


@kinds
def test_copies_and_names(make):
    v = make(jnp.array(KERNEL))
    opt = Adam(0.5)
    opt.minimize(lambda: jnp.sum(read(v)), [v])
    twin, value = copy.deepcopy(opt), np.array(read(v))
    twin.apply([np.ones(3)], [v])
    np.testing.assert_allclose(read(v), value - 0.5, atol=1e-5)
    assert int(opt.iterations) == 1 and int(twin.iterations) == 2
    np.testing.assert_allclose(opt.get_slot(v, "m").value, 0.1, rtol=1e-6)
    np.testing.assert_allclose(twin.get_slot(v, "m").value, 0.19, rtol=1e-6)
    path = getattr(v, "path", None) or getattr(v, "name", None) or type(v).__name__
    assert [w.path for w in opt.weights[1:]] == [f"Adam/{path}/m", f"Adam/{path}/v"]


@kinds
@pytest.mark.parametrize("trained", [True, False])
def test_a_loss_that_fails_leaves_everything_as_it_was(make, trained):
    v, ours = make(jnp.array(KERNEL)), Variable(1.0)

    def failing():
        total = jnp.sum(read(v)) * ours
        raise OSError(total)

    with jax.checking_leaks():
        for train in (
            lambda: SGD().minimize(failing, [v] if trained else [ours]),
            SGD().make_train_step(failing, [v]),
        ):
            with pytest.raises(OSError):
                train()
    np.testing.assert_array_equal(read(v), KERNEL)


@pytest.mark.parametrize("way", ["minimize", "make_train_step"])
def test_a_loss_may_assign_to_those_of_keras(way):
    mean, v = keras.Variable(0.0, trainable=False), keras.Variable(KERNEL)

    def centred():
        mean.assign(0.5 * mean + 1.0)
        return jnp.sum(v * mean)

    opt = SGD(1.0)
    step = opt.make_train_step(centred) if way == "make_train_step" else lambda: opt.minimize(centred)
    step()
    step()
    assert float(mean.value) == 1.5
    assert_close(np.array(v.value), KERNEL - 2.5)
    with pytest.raises(ValueError, match="the loss assigns to .*, which are being trained"):
        opt.minimize(lambda: (v.assign(v * 2), jnp.sum(v.value))[1])
    assert_close(np.array(v.value), KERNEL - 2.5)


X = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
Y = X[:, :1] - 2 * X[:, 1:2]


def make_model():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, "tanh"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.25)]
    return keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(1)])


def squared_error(model, **kwargs):
    return lambda x, y: jnp.mean((model(x, **kwargs) - y) ** 2)


def test_a_keras_model():
    model, opt = make_model(), Adam(0.02)
    step = opt.make_train_step(squared_error(model, training=True))
    untrained = [np.array(v.value) for v in model.non_trainable_variables]
    error = np.mean((model.predict(X, verbose=0) - Y) ** 2)
    with jax.checking_leaks():
        step(X, Y)
    for _ in range(20):
        step(X, Y)
    for v, before in zip(model.non_trainable_variables, untrained, strict=True):
        assert (np.array(v.value) != before).any(), v.path  # moving statistics, and the seed of the dropout
    assert np.mean((model.predict(X, verbose=0) - Y) ** 2) < error / 2
    assert len(opt.weights) == 1 + 2 * len(model.trainable_variables)


def test_minimize_trains_a_keras_model_as_a_train_step_does():
    (model, twin), (opt, other) = (make_model(), make_model()), (SGD(0.1), SGD(0.1))
    step = other.make_train_step(squared_error(twin, training=True))
    for _ in range(2):
        opt.minimize(lambda: squared_error(model, training=True)(X, Y))
        step(X, Y)
    for v, w in zip(model.variables, twin.variables, strict=True):
        np.testing.assert_allclose(v.value, w.value, rtol=1e-4, atol=1e-5, err_msg=v.path)
    assert_close(model.predict(X, verbose=0), twin.predict(X, verbose=0))


def test_a_flax_model():
    model, opt = nnx.Linear(4, 1, rngs=nnx.Rngs(0)), Adam(0.1)
    params = [model.kernel, model.bias]
    step = opt.make_train_step(squared_error(model), params)
    error = squared_error(model)(X, Y)
    with jax.checking_leaks():
        opt.minimize(lambda: squared_error(model)(X, Y), params)
        step(X, Y)
    for _ in range(20):
        step(X, Y)
    assert squared_error(model)(X, Y) < error / 2


@pytest.mark.parametrize("way", ["minimize", "make_train_step", "apply"])
def test_a_keras_constraint(way):
    v = keras.Variable(KERNEL)
    v.constraint = keras.constraints.NonNeg()
    opt, loss = SGD(0.5), lambda: jnp.sum(v.value)
    ways = {
        "minimize": lambda: opt.minimize(loss),
        "make_train_step": lambda: opt.make_train_step(loss)(),
        "apply": lambda: opt.apply([np.ones(3)], [v]),
    }
    ways[way]()
    assert v.value.tolist() == [0.5, 0.0, 2.5]


@pytest.mark.parametrize("make", [Variable, keras.Variable])
@pytest.mark.parametrize("way", ["apply", "make_train_step", "stateless_apply"])
def test_overwrite_with_gradient(make, way):
    v, plain, opt = make(KERNEL), make(KERNEL), Adam(0.5, weight_decay=0.5, clipvalue=0.25)
    v.overwrite_with_gradient = True
    opt.build([v, plain])
    if way == "apply":
        opt.apply([np.full(3, 7.0), np.zeros(3)], [v, plain])
    elif way == "make_train_step":
        opt.make_train_step(lambda: 7.0 * jnp.sum(v.value) + 0.0 * jnp.sum(plain.value))()
    else:
        weights, values = [w.value for w in opt.variables], [v.value, plain.value]
        (x, y), weights = opt.stateless_apply(weights, [np.full(3, 7.0), np.zeros(3)], values)
        v.assign(x), plain.assign(y)
    assert_close([np.array(v.value), np.array(plain.value)], [np.full(3, 7.0, np.float32), 0.75 * KERNEL])
    if way != "stateless_apply":
        assert not opt.get_slot(v, "m").value.any() and int(opt.iterations) == 1


@pytest.mark.parametrize("wrong", [KERNEL, jnp.array(KERNEL), "v", None, {"value": KERNEL}, object()], ids=type)
def test_what_is_no_variable(wrong):
    opt = SGD(0.5)
    for fn in (
        lambda: opt.apply_gradients([(KERNEL, wrong)]),
        lambda: opt.apply([KERNEL], [wrong]),
        lambda: opt.build([wrong]),
        lambda: opt.get_slot(wrong, "momentum"),
        lambda: opt.exclude_from_weight_decay([wrong]),
        lambda: opt.finalize_variable_values([wrong]),
    ):
        with pytest.raises(TypeError, match="not a variable|must be a Variable"):
            fn()
    with pytest.raises(ValueError, match="var_list must hold variables"):
        opt.minimize(lambda: jnp.float32(1.0), [wrong])


def test_a_value_that_cannot_be_put_in_place():
    class ReadOnly:
        value = property(lambda self: jnp.array(KERNEL))

    with pytest.raises(TypeError, match="must be a Variable, got"):
        SGD().apply_gradients([(KERNEL, ReadOnly())])
    v = WithValue(KERNEL)
    v.value = KERNEL  # NumPy
    with pytest.raises(TypeError, match="mine holds a ndarray, not a JAX array"):
        SGD().apply_gradients([(KERNEL, v)])
