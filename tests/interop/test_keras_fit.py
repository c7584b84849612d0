"""Transformations in the real Keras's `fit`: the same training as by Keras's own Adam, callbacks, files, refusals."""

import os
import subprocess
import sys

os.environ["KERAS_BACKEND"] = "jax"

import keras
import numpy as np
import optax
import pytest

import functional_opt as fo
from functional_opt.interop import to_keras

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras
X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
Y = X @ np.float32([[1.0], [-2.0], [0.5], [0.0]])


def train(optimizer, epochs=1, model=None, callbacks=(), **options):
    if model is None:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(1)])
        model.compile(optimizer, loss="mse", **options)
    model.fit(X, Y, epochs=epochs, batch_size=8, verbose=0, shuffle=False, callbacks=list(callbacks))
    return model


def weights(model):
    return [keras.ops.convert_to_numpy(v.value) for v in model.trainable_variables]


def assert_close(a, b, atol=1e-6):
    for x, y in zip(weights(a), weights(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    "more", [{}, {"clipnorm": 0.5, "weight_decay": 0.1}, {"gradient_accumulation_steps": 2}], ids=str
)
def test_trains_as_kerass_adam(eager, more):
    options = {"run_eagerly": True} if eager else {"jit_compile": True}
    theirs = train(keras.optimizers.Adam(0.01, epsilon=1e-8, **more), **options)
    ours = train(to_keras(fo.adam(0.01, eps=1e-8), **more), **options)
    assert_close(ours, theirs, 2e-6)


def test_a_callback_sets_the_learning_rate():
    model = train(to_keras(fo.chain(fo.clip_by_global_norm(1.0), fo.adam(0.01))), steps_per_execution=2)
    before = weights(model)
    train(None, model=model, callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch: 0.0)])
    for x, y in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_schedule_of_ours_and_a_transformation_of_optax():
    ours = train(to_keras(fo.sgd(fo.linear_schedule(0.1, 0.0, 4))))
    assert_close(ours, train(to_keras(optax.sgd(optax.linear_schedule(0.1, 0.0, 4)))))


def test_a_saved_model_resumes(tmp_path):
    model = train(
        to_keras(fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(0.01, mask={"**/kernel": True, "**": False})))
    )
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert_close(train(None, model=again), train(None, model=model), 0.0)


LOAD = """
import functional_opt.interop
import keras
import numpy as np
model = keras.models.load_model({path!r})
np.save({out!r}, model.predict(np.ones((1, 4), "float32"), verbose=0))
assert type(model.optimizer).__name__ == "Transformation" and int(model.optimizer.iterations) == 4
"""


def test_a_saved_model_is_loaded_by_another_process(tmp_path):
    """Which imports the package, before Keras, and calls nothing of it."""
    model, path, out = train(to_keras(fo.adam(0.01))), str(tmp_path / "model.keras"), str(tmp_path / "out.npy")
    model.save(path)
    script = LOAD.format(path=path, out=out)
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"KERAS_BACKEND": "jax"})
    np.testing.assert_allclose(np.load(out), model.predict(np.ones((1, 4), "float32"), verbose=0), rtol=1e-6)


def scheduler(rate):
    return keras.callbacks.LearningRateScheduler(lambda epoch, _: rate)


def test_a_callback_sets_equal_rates_together():
    """Muon has one for matrices and one for the rest."""
    model = train(to_keras(fo.muon(0.05)))
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)
    before = weights(model)
    train(None, model=model, callbacks=[scheduler(0.0)])
    for x, y in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_schedule_of_ours_can_be_read_and_not_be_set():
    model = train(to_keras(fo.adam(fo.linear_schedule(0.1, 0.0, 8))))
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)
    with pytest.raises(TypeError, match=r"learning_rate cannot be set: .* has the schedule polynomial_schedule"):
        train(None, model=model, callbacks=[scheduler(0.1)])
    decayed = train(to_keras(fo.sgd(fo.linear_schedule(0.1, 0.0, 8)), weight_decay=0.1))
    rates = keras.optimizers.schedules.PolynomialDecay(0.1, 8, 0.0)
    assert_close(decayed, train(keras.optimizers.SGD(rates, weight_decay=0.1)), 2e-6)


def test_a_chain_without_a_rate_or_with_several_refuses_one():
    for tx in (fo.scale(-0.1), fo.chain(fo.sgd(0.1), fo.sgd(0.2)), optax.sgd(0.1)):
        optimizer = to_keras(tx)
        assert np.isnan(optimizer.learning_rate)
        with pytest.raises(TypeError, match="learning_rate cannot be set: .* no learning rate, or several"):
            optimizer.learning_rate = 0.1
        with pytest.raises(ValueError, match=r"weight_decay .*add_decayed_weights"):
            to_keras(tx, weight_decay=0.1)


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="learning_rate was given, but .* has no rate to replace"):
        to_keras(fo.scale_by_adam(), learning_rate=0.1)
    with pytest.raises(TypeError, match="tx|transformation"):
        to_keras(3)
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(RuntimeError, match="KERAS_BACKEND=jax"):
        to_keras(fo.adam(0.1))
