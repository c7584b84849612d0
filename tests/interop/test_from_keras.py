"""from_keras: k steps in Keras, then here, are the steps of Keras alone."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo
from functional_opt.interop.keras import from_keras
from functional_opt.interop.keras_rules import READ_PARAMS
from functional_opt.interop.keras_states import COMPARED

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras

SHAPES = {"dense/kernel": (4, 3), "dense/bias": (3,)}
OPTIMIZERS = {
    **{name: (lambda name=name: getattr(keras.optimizers, name)(0.05)) for name in COMPARED},
    **{
        f"{name}, decay": (lambda name=name: getattr(keras.optimizers, name)(0.05, weight_decay=0.3))
        for name in COMPARED
        if name not in ("Muon", "Ftrl", "SGD", *READ_PARAMS)
    },
    "SGD, Nesterov": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "RMSprop, momentum": lambda: keras.optimizers.RMSprop(0.05, momentum=0.9, centered=True),
    "AMSGrad": lambda: keras.optimizers.Adam(0.05, amsgrad=True),
    "clip, schedule": lambda: keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(0.1, 20), global_clipnorm=0.5
    ),
    "clipvalue": lambda: keras.optimizers.SGD(0.05, clipvalue=0.1),
    "Adafactor, clips": lambda: keras.optimizers.Adafactor(
        0.9, relative_step=False, clipnorm=0.5, clip_threshold=0.7
    ),
    "Adafactor, schedule": lambda: keras.optimizers.Adafactor(decaying(0.5), clip_threshold=0.7),
    "Muon, decay": lambda: keras.optimizers.Muon(0.05, weight_decay=0.3, adam_weight_decay=0.2, adam_lr_ratio=0.5),
    "Muon, own": lambda: keras.optimizers.Muon(
        decaying(0.1), nesterov=False, momentum=0.8, rms_rate=None, ns_steps=3, weight_decay=None, clipvalue=0.5
    ),
    "Muon, all Adam's": lambda: keras.optimizers.Muon(0.05, exclude_layers=["dense/k"], adam_weight_decay=None),
    "ScheduleFreeAdamW, warm-up": lambda: keras.optimizers.ScheduleFreeAdamW(0.05, beta_1=0.7, warmup_steps=8),
    "ScheduleFreeAdamW, schedule": lambda: keras.optimizers.ScheduleFreeAdamW(decaying(0.1), warmup_steps=0),
    "means": lambda: keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.8, global_clipnorm=0.5),
    "means, Muon": lambda: keras.optimizers.Muon(0.05, use_ema=True, ema_momentum=0.8),
    "no decay of biases": lambda: without_decay_of("bias", keras.optimizers.AdamW(0.05, weight_decay=0.5)),
    "no decay of kernels": lambda: without_decay_of("kernel", keras.optimizers.Muon(0.05, weight_decay=0.5)),
}


def decaying(rate):
    return keras.optimizers.schedules.CosineDecay(rate, 20)


def without_decay_of(name, optimizer):
    optimizer.exclude_from_weight_decay(var_names=[name])
    return optimizer


def started(optimizer, steps=5):
    rng = np.random.default_rng(0)
    layer = keras.layers.Dense(SHAPES["dense/kernel"][1], name="dense")
    layer.build((None, SHAPES["dense/kernel"][0]))
    variables = layer.trainable_variables
    for v in variables:
        v.assign(rng.normal(size=v.shape))
    grads = [[rng.normal(size=s).astype("float32") for s in SHAPES.values()] for _ in range(steps + 5)]
    optimizer.build(variables)
    for g in grads[:steps]:
        optimizer.apply(g, variables)
    return variables, grads[steps:]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("taken", [0, 5])
def test_the_next_steps_are_those_of_keras(name, taken):
    optimizer = OPTIMIZERS[name]()
    (kernel, bias), grads = started(optimizer, taken)
    params = {"dense": {"bias": jnp.asarray(bias.value), "kernel": jnp.asarray(kernel.value)}}
    tx, state = from_keras(optimizer, params)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
    assert fo.from_config(fo.to_config(tx)) == tx
    for g in grads:
        optimizer.apply(g, [kernel, bias])
        updates, state = tx.update({"dense": {"kernel": g[0], "bias": g[1]}}, state, params)
        params = fo.apply_updates(params, updates)
    np.testing.assert_allclose(params["dense"]["kernel"], kernel.value, atol=3e-6)
    np.testing.assert_allclose(params["dense"]["bias"], bias.value, atol=3e-6)
    if optimizer.use_ema:
        means = [x.value for x in optimizer._model_variables_moving_average]
        for ours, theirs in zip(fo.eval_params(state, params)["dense"].values(), reversed(means), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=3e-6)


def model_of(optimizer):
    """A model with that optimizer, and its variables as params."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3, name="hidden"), keras.layers.Dense(2)])
    if optimizer is not None:
        model.compile(optimizer, loss="mse")
    return model


X, Y = np.random.default_rng(0).normal(size=(8, 4)).astype("float32"), np.ones((8, 2), "float32")


def variables_of(model):
    return {v.path: jnp.asarray(v.value) for v in model.trainable_variables}


def assert_same_states(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_keras_file(tmp_path):
    model = model_of(keras.optimizers.Adam(0.05, use_ema=True))
    model.fit(X, Y, epochs=3, verbose=0)
    model.save(tmp_path / "model.keras")
    params = variables_of(model)
    tx, state = from_keras(model.optimizer, params)
    read = from_keras(tmp_path / "model.keras", params)
    assert read[0] == tx and int(state[0][0].count) == 3
    assert_same_states(read[1], state)
    read = from_keras(str(tmp_path / "model.keras"), params)
    assert_same_states(read[1], state)


def test_a_file_of_weights(tmp_path):
    """As the docstring has it: Keras reads the state into an optimizer that is built."""
    model = model_of(keras.optimizers.Adam(0.05))
    model.fit(X, Y, epochs=3, verbose=0)
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    other = model_of(None)
    other.compile(keras.optimizers.Adam(0.05), loss="mse")
    other.optimizer.build(other.trainable_variables)
    other.load_weights(path)
    params = variables_of(other)
    tx, state = from_keras(other.optimizer, params)
    assert int(state[0].count) == 3
    for path, momentum in zip(variables_of(other), model.optimizer._momentums, strict=True):
        np.testing.assert_array_equal(state[0].mu[path], momentum.value)


def test_files_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match="reads `.keras` files, got '.*model.weights.h5'; let Keras load weights"):
        from_keras(tmp_path / "model.weights.h5", {})
    model_of(None).save(tmp_path / "bare.keras")
    with pytest.raises(ValueError, match="the model in '.*bare.keras' has no optimizer; it was saved without"):
        from_keras(tmp_path / "bare.keras", {})


def test_params_in_a_list():
    optimizer = keras.optimizers.Adam(0.05)
    variables, _ = started(optimizer)
    _, state = from_keras(optimizer, [jnp.asarray(v.value) for v in variables])
    assert [x.shape for x in state[0].mu] == [(4, 3), (3,)] and int(state[0].count) == 5


@pytest.mark.parametrize("as_they_are", [list, lambda x: dict(zip(SHAPES, x, strict=True))], ids=["list", "flat"])
def test_muon_routes_leaves_in_other_containers(as_they_are):
    optimizer = keras.optimizers.Muon(0.05, weight_decay=0.5)
    variables, grads = started(without_decay_of("bias", optimizer))
    params = as_they_are([jnp.asarray(v.value) for v in variables])
    tx, state = from_keras(optimizer, params)
    updates, _ = tx.update(as_they_are(grads[0]), state, params)
    optimizer.apply(grads[0], variables)
    moved, theirs = map(jax.tree.leaves, (fo.apply_updates(params, updates), as_they_are(variables)))
    for w, v in zip(moved, theirs, strict=True):
        np.testing.assert_allclose(w, v.value, atol=3e-6)


def test_refusals():
    adam = keras.optimizers.Adam
    w = {"dense": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}}
    for optimizer, error, says in (
        (adam(0.1), ValueError, "is not built"),
        (keras.optimizers.LossScaleOptimizer(adam(0.1)), TypeError, "got LossScaleOptimizer, which has not been"),
        (adam(0.1, use_ema=True, ema_overwrite_frequency=4), ValueError, "ema_overwrite_frequency=4 Keras replaces"),
        (adam(0.1, use_ema=True, ema_momentum=1.0), ValueError, "ema_momentum=1 keeps the first means"),
        (adam(0.1, gradient_accumulation_steps=2), ValueError, "gradient_accumulation_steps=2 is accumulation"),
        (keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1), ValueError, "does not stand before the rate"),
        *(
            (getattr(keras.optimizers, name)(0.1, weight_decay=0.1), ValueError, f"Keras's {name} reads the params")
            for name in READ_PARAMS
        ),
        *(
            (optimizer, ValueError, f"the weight_decay of {type(optimizer).__name__} does not stand before the rate")
            for optimizer in (
                keras.optimizers.Ftrl(0.1, weight_decay=0.1),
                keras.optimizers.RMSprop(0.1, momentum=0.9, weight_decay=0.1),
            )
        ),
        (keras.optimizers.ScheduleFreeAdamW(decaying(0.1), warmup_steps=3), ValueError, "multiplies a schedule"),
    ):
        if says != "is not built" and error is ValueError:
            started(optimizer)
        with pytest.raises(error, match=says):
            from_keras(optimizer, w)
    optimizer = adam(0.1)
    started(optimizer)
    with pytest.raises(ValueError, match="params has 1 leaves, but the optimizer has 2 variables"):
        from_keras(optimizer, {"kernel": jnp.zeros((4, 3))})
    with pytest.raises(ValueError, match="params has no leaf for the variable 'dense/bias'"):
        from_keras(optimizer, {"kernel": jnp.zeros((4, 3)), "offset": jnp.zeros(3)})
    for setting, says in (("constraint", "has a constraint"), ("overwrite_with_gradient", "is overwritten by its")):
        optimizer = adam(0.1)
        variables, _ = started(optimizer)
        setattr(variables[0], setting, keras.constraints.NonNeg() if setting == "constraint" else True)
        with pytest.raises(ValueError, match=f"'dense/kernel' {says}"):
            from_keras(optimizer, w)
