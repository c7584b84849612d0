"""Optimizers of the facade in the real Keras's `compile`: the same training as alone, or as with Keras's own."""

import copy
import functools
import os
import pickle
import subprocess
import sys

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
import pytest

import functional_opt as fo
from functional_opt.interop import to_keras
from functional_opt.keras import optimizers as ours

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras
theirs = keras.optimizers
X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
Y = X @ np.float32([[1.0, 0.0], [-2.0, 1.0], [0.5, 2.0], [0.0, -1.0]])
BATCHES = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 12, 4)]


def new_model(optimizer, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(optimizer, loss="mse", **options)
    return model


def fit(model, epochs=1, callbacks=()):
    return model.fit(X, Y, epochs=epochs, batch_size=4, verbose=0, shuffle=False, callbacks=list(callbacks)).history


def trained(optimizer, epochs=2, **options):
    fit(model := new_model(optimizer, **options), epochs)
    return model


def assert_close(a, b, atol=2e-6):
    for x, y in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(np.float64(x), np.float64(y), rtol=1e-5 if atol else 0, atol=atol)


@functools.cache
def gradient(factor=1.0):
    model = new_model("sgd")

    def loss(params, x, y):
        return factor * ((model.stateless_call(params, [], x)[0] - y) ** 2).mean()

    return jax.jit(jax.grad(loss))


def by_hand(model, optimizer, batches=BATCHES):
    variables = model.trainable_variables
    for x, y in batches:
        grads = gradient(float(optimizer.scale_loss(1.0)))([v.value for v in variables], x, y)
        optimizer.apply_gradients(zip(grads, variables, strict=True))


class Version2(ours.Optimizer):
    """A user's optimizer in tf.keras's style."""

    def __init__(self, learning_rate=0.1, name="Version2", **kwargs):
        super().__init__(name, learning_rate=learning_rate, **kwargs)

    def _create_slots(self, var_list):
        for v in var_list:
            self.add_slot(v, "m")

    def _resource_apply_dense(self, grad, var, apply_state=None):
        m = self.get_slot(var, "m")
        m.assign(0.9 * m - self._decayed_lr(var.dtype) * grad)
        var.assign_add(m)


class Version3(Version2):
    """A user's optimizer in Keras 3's style, with a variable of its own that is not in `weights`."""

    _resource_apply_dense = property()  # it has none

    def build(self, var_list):
        super().build(var_list)
        self.updates = self.add_weight("updates", dtype="int32")
        self.m = [self.add_variable_from_reference(v, "m") for v in var_list]

    def update_step(self, grad, var, learning_rate):
        m = self.m[self._get_variable_index(var)]
        self.assign(m, 0.9 * m - learning_rate * grad)
        self.assign_add(var, m)
        self.updates.assign_add(1)


def multi():
    return ours.MultiOptimizer(ours.OptimizerMap(ours.Adam(0.01), {".*bias": ours.SGD(0.1, momentum=0.9)}))


def noisy():
    return ours.Optimizer.from_transformation(fo.chain(fo.add_noise(0.01, 0.5, 0), fo.adam(0.01)))


CASES = {
    # the rule of each class is the same pure function with Keras as without; these differ in what they keep
    **{name: functools.partial(ours.CLASSES[name], 0.01) for name in ("Adafactor", "Nadam", "ScheduleFreeAdamW")},
    "LossScaleOptimizer": lambda: ours.LossScaleOptimizer(ours.Adam(0.01), dynamic_growth_steps=2),
    "MultiOptimizer": multi,
    "FromTransformation": lambda: ours.FromTransformation(fo.lion(0.01)),
    "Version3": Version3,
    "everything": lambda: ours.AdamW(0.01, clipnorm=0.5, use_ema=True, decay=0.1, loss_scale_factor=8.0),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_trains_as_alone(make):
    """And the optimizer that was given to `compile` goes on by hand, with its own state."""
    optimizer, alone = make(), make()
    model, other = trained(optimizer), new_model("sgd")
    by_hand(other, alone, 2 * BATCHES)
    if alone.use_ema:  # as Keras does it, also for ScheduleFreeAdamW, whose means training goes on without
        alone.finalize_variable_values(other.trainable_variables)
    assert model.optimizer is optimizer and int(optimizer.iterations) == 6
    for _ in range(2):
        assert_close(model, other, 1e-5)
        assert_close(optimizer, alone, 1e-5)
        by_hand(model, optimizer, BATCHES[:1])
        by_hand(other, alone, BATCHES[:1])


@functools.cache
def kerass_adam():
    return trained(theirs.Adam(0.01))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"run_eagerly": True, "jit_compile": False},
        {"steps_per_execution": 2},
    ],
    ids=str,
)
def test_every_way_to_run(options):
    model = trained(ours.Adam(0.01), **options)
    assert_close(model, kerass_adam())
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(kerass_adam().evaluate(X, Y, verbose=0), rel=1e-5)


def test_by_batches():
    model = new_model(ours.get("adam", config={"learning_rate": 0.01}))
    losses = [model.train_on_batch(x, y) for _ in range(2) for x, y in BATCHES]
    assert_close(model, kerass_adam())
    assert len(losses) == 6 and int(model.optimizer.iterations) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9, "nesterov": True, "clipvalue": 0.1},
        {"global_clipnorm": 0.5, "weight_decay": 0.1},
        {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3},
        {"gradient_accumulation_steps": 2, "loss_scale_factor": 8.0},
    ],
    ids=str,
)
def test_options_as_kerass(options):
    model = trained(ours.SGD(0.05, dialect="keras3", **options))
    assert_close(model, trained(theirs.SGD(0.05, **options)))
    fit(model)  # again, although finished means and variables were the same arrays


def test_in_optimizers_of_keras():
    def nested(package, **dialect):
        return theirs.MultiOptimizer(
            theirs.OptimizerMap(package.Adam(0.01, **dialect), {".*bias": package.SGD(0.1, momentum=0.9, **dialect)})
        )

    def scaled(package, **dialect):
        return theirs.LossScaleOptimizer(package.Adam(0.01, **dialect), 4.0, 2)

    for make in (nested, scaled):
        assert_close(trained(make(ours, dialect="keras3")), trained(make(theirs)))


# Callbacks


def decays(factor):
    return keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * factor)


def plateau():
    return keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, min_delta=100)


def schedule(package):
    return package.schedules.PolynomialDecay(0.1, 8, 0.0)


@pytest.mark.parametrize("callback", [lambda: decays(0.5), plateau], ids=["scheduler", "plateau"])
def test_callbacks_set_the_rate(callback):
    models = [new_model(package.SGD(0.1)) for package in (ours, theirs)]
    mine, reference = [fit(model, 3, [callback()])["learning_rate"] for model in models]
    assert mine == pytest.approx(reference) and len(set(mine)) > 1
    assert_close(*models)
    mine, reference = [float(model.optimizer.learning_rate) for model in models]
    assert mine == pytest.approx(reference)


def test_callbacks_cannot_set_the_rate_of_a_schedule():
    """As in Keras."""
    for optimizer in (ours.SGD(schedule(ours)), ours.SGD(schedule(theirs)), theirs.SGD(schedule(theirs))):
        with pytest.raises(TypeError, match=r"schedule.*(cannot be set|not settable)|Schedule.*not settable"):
            fit(new_model(optimizer), 3, [decays(0.5)])


def test_callbacks_read_the_rate():
    def rates(optimizer, batches):
        model, seen = new_model(optimizer), []

        def note(*_, **__):
            seen.append(float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)))

        fit(model, 2, [keras.callbacks.LambdaCallback(**{"on_train_batch_end" if batches else "on_epoch_end": note})])
        return seen, model

    for package in (ours, theirs):
        seen, model = rates(ours.SGD(schedule(package)), False)
        reference, other = rates(theirs.SGD(schedule(theirs)), False)
        assert seen == pytest.approx(reference)
        assert_close(model, other)
    assert rates(ours.SGD(0.1), True)[0] == pytest.approx([0.1] * 6)  # Keras's own cannot be read there
    assert rates(ours.SGD(schedule(ours)), True)[0] == pytest.approx([0.1] * 3 + [0.1 * 5 / 8] * 3)


def test_callbacks_swap_means():
    models = [new_model(p.SGD(0.05, use_ema=True, ema_momentum=0.5)) for p in (ours, theirs)]
    for model in models:
        fit(model, 2, [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)])
    assert_close(*models)


# Float16


@pytest.fixture
def float16():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


SCALED = {
    "inside Keras's": lambda package: package.SGD(0.1, momentum=0.9),
    "as it is": lambda package: package.LossScaleOptimizer(package.SGD(0.1, momentum=0.9)),
}


@pytest.mark.parametrize("make", SCALED.values(), ids=SCALED)
def test_mixed_float16(make, float16):
    optimizer, reference = make(ours), trained(make(theirs))
    model = trained(optimizer)
    assert isinstance(model.optimizer, theirs.LossScaleOptimizer)
    assert (model.optimizer is optimizer) == isinstance(optimizer, ours.LossScaleOptimizer)
    assert float(model.optimizer.dynamic_scale) == float(reference.optimizer.dynamic_scale) < 2.0**15
    assert int(optimizer.iterations) == int(reference.optimizer.iterations) < 6
    assert_close(model, reference, 1e-3)


# Files


def assert_resumes(model, tmp_path, **options):
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", **options)
    for m in (model, again):
        fit(m)
    assert_close(again, model, 0.0)
    return again


class Halving(theirs.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1 / (1.0 + keras.ops.cast(step, "float32"))

    def get_config(self):
        return {}


FILES = {
    "our schedule": lambda: ours.SGD(schedule(ours), momentum=0.9, use_ema=True),
    "the user's schedule": lambda: ours.SGD(Halving(), momentum=0.9),
    "MultiOptimizer": multi,
    "noise": noisy,
    "rate of a transformation": lambda: ours.FromTransformation(fo.scale_by_adam(), learning_rate=0.01),
    "schedule of a transformation": lambda: ours.FromTransformation(fo.adam(fo.linear_schedule(0.1, 0.0, 8))),
    "the user's class": lambda: ours.LossScaleOptimizer(Version3(0.01)),
}


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_a_file_resumes_exactly(make, tmp_path):
    model = trained(make())
    again = assert_resumes(model, tmp_path, custom_objects={"Version3": Version3, "Halving": Halving})
    for x, y in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(x.numpy(), y.numpy())


LOAD = """
import keras, functional_opt.keras
from tests.interop.test_keras_compile import fit, keras
model = keras.models.load_model({path!r})
fit(model)
model.save_weights({out!r})
"""


def test_another_process_resumes_exactly(tmp_path):
    path, out = str(tmp_path / "model.keras"), str(tmp_path / "out.weights.h5")
    model = trained(ours.LossScaleOptimizer(Registered(0.01)))
    model.save(path)
    subprocess.run([sys.executable, "-c", LOAD.format(path=path, out=out)], check=True)
    fit(model)
    (other := new_model(ours.LossScaleOptimizer(Registered(0.01)))).optimizer.build(other.trainable_variables)
    other.load_weights(out)
    assert_close(other, model, 0.0)
    assert_close(other.optimizer, model.optimizer, 0.0)


@keras.saving.register_keras_serializable("tests")
class Registered(Version2):
    pass


def test_a_file_of_an_untrained_model(tmp_path):
    new_model(ours.Adam(0.01)).save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="the state of optimizer 'Adam' was not loaded: it has 8 variables"):
        model = keras.models.load_model(tmp_path / "model.keras")
    fit(model, 2)
    assert_close(model, kerass_adam())


# The object


def test_is_both_once_keras_has_asked():
    optimizer = ours.Adam(0.01)
    assert type(optimizer) is ours.Adam and optimizer.__class__ is ours.Adam
    model = new_model(optimizer)
    assert isinstance(optimizer, ours.Adam) and isinstance(optimizer, theirs.Optimizer)
    assert not isinstance(optimizer, theirs.LossScaleOptimizer | ours.SGD)
    assert ours.get(optimizer) is theirs.get(optimizer) is to_keras(optimizer) is optimizer
    fit(model)
    twin, plain = copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))
    assert type(plain) is ours.Adam
    for other in (twin, plain, ours.get(ours.serialize(optimizer))):
        assert other.get_config() == optimizer.get_config()
    for other in (twin, plain):
        assert_close(other, optimizer, 0.0)
    fit(model)
    assert (int(twin.iterations), int(plain.iterations), int(optimizer.iterations)) == (3, 3, 6)


def test_the_rate_can_be_assigned_between_fits():
    model = trained(ours.SGD(0.1))
    before = model.get_weights()
    model.optimizer.learning_rate = 0.0
    fit(model)
    for x, y in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_failed_callback_leaves_the_state_of_the_last_batch():
    def fail(batch, logs):
        if batch == 1:
            raise KeyError("stop")

    model, alone, other = new_model(ours.Adam(0.01)), ours.Adam(0.01), new_model("sgd")
    with pytest.raises(KeyError, match="stop"):
        fit(model, 1, [keras.callbacks.LambdaCallback(on_train_batch_end=fail)])
    by_hand(other, alone, BATCHES[:2])
    assert_close(model.optimizer, alone, 1e-5)


def test_more_callbacks_and_reports(tmp_path):
    model = new_model(ours.Adam(0.01))
    stop, log = keras.callbacks.EarlyStopping("loss"), keras.callbacks.CSVLogger(tmp_path / "log.csv")
    fit(model, 2, [keras.callbacks.BackupAndRestore(tmp_path / "backup"), stop, log])
    assert_close(model, kerass_adam())
    model.summary(print_fn=lambda *_, **__: None)
    tree = model.get_state_tree()
    model.set_state_tree(tree)
    assert len(tree["optimizer_variables"]) == len(model.optimizer.variables)


# Refusals


def test_a_model_of_other_shapes():
    optimizer = ours.Adam(0.01)
    trained(optimizer, 1)

    def other():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.Dense(2)])
        model.compile(optimizer, loss="mse")
        return model

    with pytest.raises(ValueError, match=r"'Adam' was built for variables of other shapes than .*optimizer.build\("):
        fit(other())
    model = other()
    optimizer.build(model.trainable_variables)
    fit(model)
    assert int(optimizer.iterations) == 6


def test_refusals(monkeypatch):
    with pytest.raises(TypeError, match="give the other arguments to Adam itself"):
        to_keras(ours.Adam(), learning_rate=0.1)
    with pytest.raises(ValueError, match="Could not interpret optimizer identifier"):
        new_model(ours.Adam)
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(RuntimeError, match="KERAS_BACKEND=jax"):
        theirs.get(ours.Adam())
