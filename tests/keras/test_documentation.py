"""The examples that users know, from the documentation of tf.keras, Keras 3 and TensorFlow 1, with their results.

Of each the import is changed, and what has another form on JAX: `tf.Variable` is `keras.Variable`, a GradientTape is
`compute_gradients`, `var.value()` is `var.value`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import keras
from functional_opt.keras.optimizers import legacy as train


def near(x):
    return pytest.approx(x, rel=1e-5)


class Dense:
    """A layer that makes its variables when it is called, as those of Keras do."""

    def __init__(self, units):
        self.units, self.trainable_weights = units, []

    def __call__(self, x):
        if not self.trainable_weights:
            kernel = keras.Variable(np.full((x.shape[-1], self.units), 0.5), name="dense/kernel")
            self.trainable_weights = [kernel, keras.Variable(jnp.zeros(self.units), name="dense/bias")]
        kernel, bias = self.trainable_weights
        return x @ kernel + bias


# tf.keras.optimizers.Optimizer


def test_usage():
    opt = keras.optimizers.SGD(learning_rate=0.1)
    var1, var2 = keras.Variable(2.0), keras.Variable(5.0)
    loss = lambda: 3 * var1 * var1 + 2 * var2 * var2  # noqa: E731
    opt.minimize(loss, var_list=[var1, var2])
    assert (float(var1), float(var2)) == near((2 - 0.1 * 12, 5 - 0.1 * 20))
    opt.minimize(loss, var_list=[var1, var2])
    assert int(opt.iterations) == 2


def test_usage_in_custom_training_loops():
    opt, model = keras.optimizers.SGD(learning_rate=0.01), Dense(1)
    x, y = np.float32([[1, 2], [3, 4], [5, 6]]), np.float32([[1], [2], [3]])
    loss_fn = lambda: jnp.mean((model(x) - y) ** 2)  # noqa: E731
    var_list_fn = lambda: model.trainable_weights  # noqa: E731
    before = loss_fn()
    for _ in range(3):
        opt.minimize(loss_fn, var_list_fn)
    assert int(opt.iterations) == 3
    assert loss_fn() < before / 10


def test_processing_gradients_before_applying_them():
    opt = keras.optimizers.SGD(learning_rate=0.1)
    var_list = [keras.Variable([1.0, -2.0]), keras.Variable(3.0)]
    grads_and_vars = opt.compute_gradients(lambda: jnp.sum(var_list[0] ** 2) + 5 * var_list[1], var_list)
    capped_grads = [jnp.clip(g, -1, 1) for g, _ in grads_and_vars]
    opt.apply_gradients(zip(capped_grads, var_list, strict=True))
    assert var_list[0].numpy().tolist() == near([0.9, -1.9])
    assert float(var_list[1]) == near(2.9)


def test_gradients_of_jax():
    optimizer, w = keras.optimizers.Adam(learning_rate=0.1), keras.Variable([1.0, 2.0])
    for _ in range(2):
        gradients = jax.grad(lambda values: jnp.sum(values[0] ** 2))([w.value])
        optimizer.apply_gradients(zip(gradients, [w], strict=True))
    assert w.numpy().tolist() == pytest.approx([0.8, 1.8], abs=1e-3)


def test_custom_gradient_transformations():
    def my_gradient_transformer(grads_and_vars):
        return [(2.0 * g, v) for g, v in grads_and_vars]

    optimizer, var = keras.optimizers.SGD(1e-3, gradient_transformers=[my_gradient_transformer]), keras.Variable(1.0)
    optimizer.minimize(lambda: 3 * var, [var])
    assert float(var) == near(1 - 6e-3)


def test_aggregating_gradients_oneself():
    optimizer = keras.optimizers.SGD(1.0, gradient_aggregator=lambda pairs: [(8 * g, v) for g, v in pairs])
    var, grads = keras.Variable(0.0), [1.0]
    optimizer.apply_gradients(zip(grads, [var], strict=True), experimental_aggregate_gradients=False)
    assert float(var) == -1.0


def test_clipping():
    sgd, var = keras.optimizers.SGD(learning_rate=0.01, clipnorm=1.0), keras.Variable([0.0, 0.0])
    sgd.apply_gradients([(np.float32([3, 4]), var)])
    assert var.numpy().tolist() == near([-0.006, -0.008])
    sgd, var = keras.optimizers.SGD(learning_rate=0.01, clipvalue=0.5), keras.Variable([0.0, 0.0])
    sgd.apply_gradients([(np.float32([3, -0.25]), var)])
    assert var.numpy().tolist() == near([-0.005, 0.0025])


def test_variable_constraints():
    non_negative = lambda w: w * (w >= 0)  # noqa: E731
    var = keras.Variable([0.05, 1.0], constraint=non_negative)
    keras.optimizers.SGD(0.1).minimize(lambda: jnp.sum(var), [var])
    assert var.numpy().tolist() == near([0.0, 0.9])
    slices = keras.IndexedSlices(np.ones(1), [0], (2,))
    with pytest.raises(RuntimeError, match="Cannot use a constraint function on a sparse variable"):
        keras.optimizers.SGD(0.1).apply_gradients([(slices, var)])


def test_slots():
    opt, var = keras.optimizers.Adam(), keras.Variable([1.0, 2.0], name="var")
    opt.minimize(lambda: jnp.sum(var), [var])
    assert opt.get_slot_names() == ["m", "v"]
    report = {name: opt.get_slot(var, name).numpy().tolist() for name in opt.get_slot_names()}
    assert report == {"m": near([0.1, 0.1]), "v": pytest.approx([0.001, 0.001], rel=1e-4)}


def test_hyperparameters():
    opt = keras.optimizers.SGD(learning_rate=0.1)
    var1, var2 = keras.Variable(1.0), keras.Variable(1.0)
    loss = lambda: 3 * var1 + 2 * var2  # noqa: E731
    opt.minimize(loss, var_list=[var1, var2])
    opt.learning_rate = 0.05
    opt.minimize(loss, var_list=[var1, var2])
    assert (float(var1), float(var2)) == near((1 - 0.3 - 0.15, 1 - 0.2 - 0.1))


def test_callable_learning_rate():
    var = keras.Variable(np.random.default_rng(0).random(size=(1,)))
    before = float(var[0])
    learning_rate = keras.optimizers.schedules.ExponentialDecay(
        initial_learning_rate=0.01, decay_steps=20, decay_rate=0.1
    )
    opt = keras.optimizers.SGD(learning_rate=learning_rate)
    loss = lambda: 3 * var  # noqa: E731
    assert isinstance(opt.minimize(loss, var_list=[var]), keras.Variable)
    opt.minimize(loss, var_list=[var])
    assert before - float(var[0]) == near(0.03 * (1 + 0.1**0.05))

    def lr_callable():
        return 0.1

    opt = keras.optimizers.SGD(learning_rate=lr_callable)
    before = float(var[0])
    opt.minimize(loss, var_list=[var])
    assert before - float(var[0]) == near(0.3)


def test_creating_a_custom_optimizer():
    class MyMomentum(keras.optimizers.Optimizer):
        def __init__(self, learning_rate=0.1, momentum=0.9, name="MyMomentum", **kwargs):
            super().__init__(name, **kwargs)
            self._set_hyper("learning_rate", kwargs.get("lr", learning_rate))
            self._set_hyper("momentum", momentum)

        def _create_slots(self, var_list):
            for var in var_list:
                self.add_slot(var, "momentum")

        def _resource_apply_dense(self, grad, var):
            m = self.get_slot(var, "momentum")
            m.assign(self._get_hyper("momentum", var.dtype) * m + grad)
            var.assign_sub(self._decayed_lr(var.dtype) * m)

        def _resource_apply_sparse(self, grad, var, indices):
            raise NotImplementedError("sparse gradients")

        def get_config(self):
            config = super().get_config()
            config["learning_rate"] = self._serialize_hyperparameter("learning_rate")
            return config | {"momentum": self._serialize_hyperparameter("momentum")}

    var = keras.Variable([1.0, 2.0], name="var")
    opt = MyMomentum.from_config(MyMomentum(0.5, momentum=0.5, decay=1.0).get_config())
    for _ in range(2):
        opt.apply_gradients([(np.ones(2), var)])
    assert var.numpy().tolist() == near([1 - 0.5 - 0.25 * 1.5, 2 - 0.5 - 0.25 * 1.5])
    assert opt.get_slot(var, "momentum").numpy().tolist() == [1.5, 1.5]
    with pytest.raises(NotImplementedError, match="sparse gradients"):
        opt.apply_gradients([(keras.IndexedSlices(np.ones(1), [0]), var)])
    assert int(opt.iterations) == 2


def trained_rmsprop():
    opt, m = keras.optimizers.RMSprop(), Dense(10)
    data, labels = np.arange(100, dtype=np.float32).reshape(5, 20), np.zeros((5, 1), np.float32)
    opt.minimize(lambda: jnp.mean((m(data) - labels) ** 2), lambda: m.trainable_weights)
    return opt


def test_get_weights():
    assert [w.shape for w in trained_rmsprop().get_weights()] == [(), (20, 10), (10,)]


def test_set_weights():
    opt = trained_rmsprop()
    new_weights = [np.array(10), np.ones([20, 10]), np.zeros([10])]
    opt.set_weights(new_weights)
    assert int(opt.iterations) == 10 and opt.iterations.name == "RMSprop/iter:0"
    for w, x in zip(opt.get_weights(), new_weights, strict=True):
        np.testing.assert_array_equal(w, x)


def test_config():
    opt = keras.optimizers.Adam(learning_rate=0.01, beta_1=0.8, clipnorm=1.0)
    twin = keras.optimizers.Adam.from_config(opt.get_config())
    assert (float(twin.learning_rate), float(twin.beta_1), twin.clipnorm) == near((0.01, 0.8, 1.0))
    assert (float(twin.lr), "beta_2" in dir(twin), twin.weights == twin.variables()) == (near(0.01), True, True)


# One optimizer after another


def test_sgd():
    opt = keras.optimizers.SGD(learning_rate=0.1)
    var = keras.Variable(1.0)
    loss = lambda: (var**2) / 2.0  # noqa: E731  # d(loss)/d(var1) = var1
    step_count = opt.minimize(loss, [var]).numpy()
    assert step_count == 1
    assert var.numpy() == near(0.9)


def test_sgd_with_momentum():
    opt = keras.optimizers.SGD(learning_rate=0.1, momentum=0.9)
    var = keras.Variable(1.0)
    val0 = var.value
    loss = lambda: (var**2) / 2.0  # noqa: E731
    opt.minimize(loss, [var])
    val1 = var.value
    assert (val0 - val1) == near(0.1)
    step_count = opt.minimize(loss, [var]).numpy()
    val2 = var.value
    assert (val1 - val2) == near(0.18)  # the step is larger because of momentum
    assert step_count == 2


# Those without printed results (the last four) follow the formulas on their pages, with the gradient 10
FROM_TEN = [
    (lambda: keras.optimizers.Adam(learning_rate=0.1), 9.9),
    (lambda: keras.optimizers.RMSprop(learning_rate=0.1), 9.683772),
    (lambda: keras.optimizers.Adamax(learning_rate=0.1), 9.9),
    (lambda: keras.optimizers.Adagrad(learning_rate=0.1), 10 - 0.1 * 10 / 100.1**0.5),
    (lambda: keras.optimizers.Adadelta(learning_rate=1.0), 10 - (1e-7 / (5 + 1e-7)) ** 0.5 * 10),
    (lambda: keras.optimizers.Ftrl(learning_rate=0.1), 10 * (1 - (0.1 / 100.1) ** 0.5) - 0.1 * 10 / 100.1**0.5),
]


@pytest.mark.parametrize(("make", "expected"), FROM_TEN, ids=lambda x: type(x()).__name__ if callable(x) else None)
def test_one_step_from_ten(make, expected):
    opt, var1 = make(), keras.Variable(10.0)
    loss = lambda: (var1**2) / 2.0  # noqa: E731
    assert opt.minimize(loss, [var1]).numpy() == 1
    assert var1.numpy() == pytest.approx(expected, abs=1e-5)


def test_nadam():
    opt, var1 = keras.optimizers.Nadam(learning_rate=0.2), keras.Variable(10.0)
    opt.minimize(lambda: (var1**2) / 2.0, [var1])
    assert f"{var1.numpy():.1f}" == "9.8"


def test_the_arguments_of_keras_1():
    with pytest.warns(UserWarning, match="`lr` argument is deprecated"):
        sgd = keras.optimizers.SGD(lr=0.01, decay=1e-6, momentum=0.9, nesterov=True)
    assert (float(sgd.lr), float(sgd.decay), float(sgd.momentum), sgd.nesterov) == near((0.01, 1e-6, 0.9, True))


# Learning rate schedules


def test_my_lr_schedule():
    class MyLRSchedule(keras.optimizers.schedules.LearningRateSchedule):
        def __init__(self, initial_learning_rate):
            self.initial_learning_rate = initial_learning_rate

        def __call__(self, step):
            return self.initial_learning_rate / (step + 1)

    optimizer, var = keras.optimizers.SGD(learning_rate=MyLRSchedule(0.1)), keras.Variable(0.0)
    for _ in range(3):
        optimizer.minimize(lambda: 1.0 * var, [var])
    assert float(var) == near(-0.1 * (1 + 1 / 2 + 1 / 3))


SCHEDULES = [
    (
        keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=100000, decay_rate=0.96, staircase=True),
        {0: 0.1, 99999: 0.1, 100000: 0.096, 200000: 0.1 * 0.96**2},
    ),
    (
        keras.optimizers.schedules.PiecewiseConstantDecay([100000, 110000], [1.0, 0.5, 0.1]),
        {0: 1.0, 100000: 1.0, 100001: 0.5, 110000: 0.5, 110001: 0.1},
    ),
    (
        keras.optimizers.schedules.PolynomialDecay(0.1, 10000, 0.01, power=0.5),
        {0: 0.1, 7500: 0.01 + 0.09 * 0.25**0.5, 10000: 0.01, 20000: 0.01},
    ),
    (keras.optimizers.schedules.InverseTimeDecay(0.1, 1.0, 0.5), {0: 0.1, 2: 0.05, 18: 0.01}),
    (keras.optimizers.schedules.CosineDecay(0.1, 1000), {0: 0.1, 500: 0.05, 1000: 0.0, 3000: 0.0}),
    (
        keras.optimizers.schedules.CosineDecay(0, 1000, warmup_target=0.1, warmup_steps=1000),
        {0: 0.0, 500: 0.05, 1000: 0.1, 1500: 0.05, 2000: 0.0},
    ),
    (  # the second period is twice as long
        keras.optimizers.schedules.CosineDecayRestarts(0.1, 1000),
        {0: 0.1, 500: 0.05, 1000: 0.1, 2000: 0.05, 3000: 0.1},
    ),
]


@pytest.mark.parametrize(("learning_rate_fn", "rates"), SCHEDULES, ids=[type(s).__name__ for s, _ in SCHEDULES])
def test_schedules(learning_rate_fn, rates):
    for step, rate in rates.items():
        assert learning_rate_fn(keras.Variable(step, trainable=False)) == pytest.approx(rate, abs=1e-6)
    optimizer, var = keras.optimizers.SGD(learning_rate=learning_rate_fn), keras.Variable(0.0)
    optimizer.iterations = keras.Variable(500)
    optimizer.minimize(lambda: 1.0 * var, [var])
    assert float(var) == -learning_rate_fn(500)


def test_serialize_and_deserialize_a_schedule():
    schedules = keras.optimizers.schedules
    lr_schedule = schedules.ExponentialDecay(0.1, decay_steps=100000, decay_rate=0.96, staircase=True)
    assert schedules.serialize(lr_schedule) == {
        "module": "keras.optimizers.schedules",
        "class_name": "ExponentialDecay",
        "config": lr_schedule.get_config(),
        "registered_name": None,
    }
    config = {
        "class_name": "PolynomialDecay",
        "config": {
            "cycle": False,
            "decay_steps": 10000,
            "end_learning_rate": 0.01,
            "initial_learning_rate": 0.1,
            "name": None,
            "power": 0.5,
        },
    }
    assert schedules.deserialize(config)(10000) == near(0.01)


def test_a_schedule_must_override_call():
    with pytest.raises(NotImplementedError):
        keras.optimizers.schedules.LearningRateSchedule()(1)


# Keras 3


def test_an_optimizer_by_its_name():
    assert isinstance(keras.optimizers.get("adam"), keras.optimizers.Adam)
    lr_schedule = keras.optimizers.schedules.ExponentialDecay(
        initial_learning_rate=1e-2, decay_steps=10000, decay_rate=0.9
    )
    optimizer = keras.optimizers.SGD(learning_rate=lr_schedule)
    twin = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert twin.learning_rate(10000) == near(9e-3)


def test_apply():
    optimizer, trainable_variables = keras.optimizers.Adam(0.1), [keras.Variable([1.0, 2.0]), keras.Variable(3.0)]
    optimizer.build(trainable_variables)
    optimizer.apply([np.float32([1, -1]), np.float32(2)])
    assert trainable_variables[0].numpy().tolist() == near([0.9, 2.1])
    optimizer.apply([np.float32([1, -1])], trainable_variables[:1])
    assert (trainable_variables[0].numpy().tolist(), float(trainable_variables[1])) == (near([0.8, 2.2]), near(2.9))


def test_a_stateless_training_step():
    optimizer = keras.optimizers.Adam(learning_rate=0.1)
    w = keras.Variable([1.0, 2.0], name="w")
    optimizer.build([w])

    @jax.jit
    def train_step(state, x):
        trainable_variables, optimizer_variables = state
        loss, grads = jax.value_and_grad(lambda tv: jnp.sum((x * tv[0]) ** 2))(trainable_variables)
        return loss, optimizer.stateless_apply(optimizer_variables, grads, trainable_variables)

    state = [w.value], [v.value for v in optimizer.variables]
    losses = []
    for x in np.ones((5, 2), np.float32):
        loss, state = train_step(state, x)
        losses.append(float(loss))
    trainable_variables, optimizer_variables = state
    for variable, value in zip([w, *optimizer.variables], [*trainable_variables, *optimizer_variables], strict=True):
        variable.assign(value)
    assert int(optimizer.iterations) == 5
    assert losses == sorted(losses, reverse=True) and losses[0] == 5.0
    assert w.numpy().tolist() == pytest.approx([0.5, 1.5], abs=0.01)


def custom_sgd(*names):
    """The example of the base class of Keras 3."""

    class SGD(keras.optimizers.Optimizer):
        def __init__(self, **kwargs):
            super().__init__(*names, **kwargs)
            self.momentum = 0.9

        def build(self, variables):
            super().build(variables)
            self.momentums = []
            for variable in variables:
                self.momentums.append(self.add_variable_from_reference(reference_variable=variable, name="momentum"))

        def update_step(self, gradient, variable, learning_rate):
            learning_rate = jnp.asarray(learning_rate, variable.dtype)
            m = self.momentums[self._get_variable_index(variable)]
            self.assign(m, jnp.subtract(jnp.multiply(m, self.momentum), jnp.multiply(gradient, learning_rate)))
            self.assign_add(variable, m)

        def get_config(self):
            config = super().get_config()
            config.update({"momentum": self.momentum})
            return config

    return SGD


@pytest.mark.parametrize("names", [("sgd",), ()])
def test_creating_a_custom_optimizer_in_keras_3(names):
    opt, var = custom_sgd(*names)(learning_rate=0.1), keras.Variable([1.0, 2.0])
    for _ in range(2):
        opt.apply_gradients([(np.ones(2), var)])
    assert var.numpy().tolist() == near([1 - 0.1 - 0.19, 2 - 0.1 - 0.19])
    assert opt.get_config()["momentum"] == 0.9


def test_weight_decay():
    optimizer = keras.optimizers.AdamW(learning_rate=0.1, weight_decay=0.5)
    kernel, bias = keras.Variable([2.0], name="dense/kernel"), keras.Variable([2.0], name="dense/bias")
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.apply_gradients([(np.zeros(1, np.float32), kernel), (np.zeros(1, np.float32), bias)])
    assert (float(kernel[0]), float(bias[0])) == near((2 - 2 * 0.5 * 0.1, 2.0))


def test_running_means():
    optimizer = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2)
    var = keras.Variable(4.0)
    seen = []
    for _ in range(3):
        optimizer.minimize(lambda: 1.0 * var, [var])
        seen.append(float(var))
    assert seen == [3.0, 2.5, 1.5]  # (3 + 2)/2 becomes the value
    optimizer.finalize_variable_values([var])
    assert float(var) == 0.5 * 2.5 + 0.5 * 1.5


def test_rmsprop_in_keras_3():
    opt = keras.optimizers.RMSprop(learning_rate=0.1, dialect="keras3")
    var1 = keras.Variable(10.0)
    opt.minimize(lambda: (var1**2) / 2.0, [var1])
    assert var1.numpy() == near(9.683772)


def test_loss_scaling():
    opt = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.25))
    var = keras.Variable(1.0)
    opt.minimize(lambda: var**2, var_list=[var])
    assert float(var) == 0.5
    grad = jax.grad(lambda x: opt.scale_loss(x**2))(var.value)
    opt.apply_gradients([(grad, var)])
    assert float(var) == 0.25


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("decoder", "Adam"),
        ("encoder/layer_0/attention/query", "SGD"),
        ("decoder/layer_0/dense", "RMSprop"),
        ("encoder/layer_0/dense", "Adam"),
    ],
)
def test_optimizers_by_path(path, expected):
    opt_adam, opt_sgd, opt_rmsprop = keras.optimizers.Adam(), keras.optimizers.SGD(), keras.optimizers.RMSprop()
    optimizer_map = keras.optimizers.OptimizerMap(default_optimizer=opt_rmsprop)
    optimizer_map["encoder/layer_0/dense"] = opt_adam
    optimizer_map["encoder/.*"] = opt_sgd
    optimizer_map["decoder"] = opt_adam
    assert optimizer_map[path].name == expected


# What is documented to be refused, and not tested elsewhere

optimizers = keras.optimizers
REFUSED = [
    (lambda: optimizers.Adagrad(initial_accumulator_value=-1), "initial_accumulator_value must be non-negative"),
    (lambda: optimizers.Ftrl(initial_accumulator_value=-0.1), "`initial_accumulator_value` needs to be"),
    (
        lambda: optimizers.Ftrl(l1_regularization_strength=-1.0),
        "`l1_regularization_strength` needs to be positive or",
    ),
    (
        lambda: optimizers.Ftrl(l2_regularization_strength=-1.0),
        "`l2_regularization_strength` needs to be positive or",
    ),
    (
        lambda: optimizers.Ftrl(l2_shrinkage_regularization_strength=-1.0),
        "`l2_shrinkage_.* needs to be",
    ),
    (lambda: optimizers.Ftrl(learning_rate_power=0.5), "`learning_rate_power` needs to be negative or zero"),
    (lambda: optimizers.AdamW(weight_decay=None), "`weight_decay` must be a float. Received: weight_decay=None"),
    (lambda: optimizers.Lion(beta_1=1.0), r"`beta_1` must be between \]0, 1\["),
    (
        lambda: optimizers.Nadam(optimizers.schedules.CosineDecay(0.1, 1)),
        "Nadam optimizer does not support",
    ),
    (lambda: optimizers.Adam().apply([np.ones(1)]), "there are 1 gradients for 0 variables"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_a_clip_cannot_be_set_where_there_are_transformers(name):
    opt = keras.optimizers.SGD(gradient_transformers=[lambda grads_and_vars: grads_and_vars])
    with pytest.raises(ValueError, match=name):
        setattr(opt, name, 1.0)


# TensorFlow 1: tf.compat.v1.train


def test_tf1_usage():
    var0, var1 = keras.Variable([1.0, 2.0]), keras.Variable([3.0, 4.0])
    cost = lambda: 5 * var0 + 3 * var1  # noqa: E731
    global_step = keras.Variable(0, trainable=False, name="global_step")
    sgd_op = train.GradientDescentOptimizer(3.0)
    opt_op = sgd_op.minimize(cost, global_step, [var0, var1])
    assert var0.numpy().tolist() == [-14.0, -13.0]
    assert var1.numpy().tolist() == [-6.0, -5.0]
    assert int(global_step) == 1
    with pytest.raises(RuntimeError, match="applied"):  # it was done at once
        opt_op.run()
    assert var0.numpy().tolist() == [-14.0, -13.0]


def test_tf1_processing_gradients_before_applying_them():
    opt = train.GradientDescentOptimizer(learning_rate=0.1)
    variables = [keras.Variable([1.0, -2.0]), keras.Variable(3.0)]
    loss = lambda: jnp.sum(variables[0] ** 2) + 5 * variables[1]  # noqa: E731
    grads_and_vars = opt.compute_gradients(loss, variables)
    capped_grads_and_vars = [(jnp.clip(gv[0], -1, 1), gv[1]) for gv in grads_and_vars]
    global_step = keras.Variable(7, trainable=False)
    opt.apply_gradients(capped_grads_and_vars, global_step=global_step)
    assert (variables[0].numpy().tolist(), float(variables[1])) == (near([0.9, -1.9]), near(2.9))
    assert int(global_step) == 8


@pytest.mark.parametrize("gate", ["GATE_NONE", "GATE_OP", "GATE_GRAPH"])
def test_tf1_gating_gradients(gate):
    opt, var = train.GradientDescentOptimizer(0.5), keras.Variable([1.0, 2.0])
    loss = lambda: jnp.sum(var**2)  # noqa: E731
    gate = getattr(train.GradientDescentOptimizer, gate)
    opt.minimize(loss, var_list=[var], gate_gradients=gate, colocate_gradients_with_ops=True)
    assert var.numpy().tolist() == [0.0, 0.0]
    ((g, _),) = opt.compute_gradients(lambda: 3 * var, [var], gate_gradients=gate, grad_loss=np.float32([1, 2]))
    assert g.tolist() == [3.0, 6.0]


def test_tf1_var_list_is_what_the_loss_reads():
    var, fixed = keras.Variable(1.0), keras.Variable(2.0, trainable=False)
    train.GradientDescentOptimizer(0.25).minimize(lambda: var * fixed)
    assert (float(var), float(fixed)) == (0.5, 2.0)


def test_tf1_slots():
    opt, var = train.MomentumOptimizer(learning_rate=0.1, momentum=0.9), keras.Variable([1.0, 2.0], name="var")
    for _ in range(2):
        opt.minimize(lambda: jnp.sum(var), var_list=[var])
    assert opt.get_slot_names() == ["momentum"]
    # accumulation = momentum * accumulation + gradient, without the learning rate
    assert opt.get_slot(var, "momentum").numpy().tolist() == near([1.9, 1.9])
    assert var.numpy().tolist() == near([1 - 0.1 * 2.9, 2 - 0.1 * 2.9])
    assert opt.get_name() == "Momentum"


def test_tf1_refused():
    opt, var = train.GradientDescentOptimizer(0.1), keras.Variable(1.0)
    with pytest.raises(RuntimeError, match="loss"):
        opt.minimize(var**2, var_list=[var])
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        opt.minimize(lambda: jnp.float32(1.0), var_list=[var])
    with pytest.raises(TypeError, match="pair"):
        opt.apply_gradients([(1.0, var, "name")])
    with pytest.raises((TypeError, ValueError), match="must hold variables"):
        opt.compute_gradients(lambda: var**2, [var, "name"])
    assert float(var) == 1.0
