"""from_keras: k steps in Keras, then here, are the steps of Keras alone."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo
from functional_opt.interop.keras import from_keras
from functional_opt.interop.keras_states import COMPARED

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras

SHAPES = {"dense/kernel": (4, 3), "dense/bias": (3,)}
OPTIMIZERS = {
    **{name: (lambda name=name: getattr(keras.optimizers, name)(0.05)) for name in COMPARED},
    "AdamW, decay": lambda: keras.optimizers.AdamW(0.05, weight_decay=0.1),
    "Lion, decay": lambda: keras.optimizers.Lion(0.05, weight_decay=0.1),
    "SGD, Nesterov": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "RMSprop, momentum": lambda: keras.optimizers.RMSprop(0.05, momentum=0.9, centered=True),
    "AMSGrad": lambda: keras.optimizers.Adam(0.05, amsgrad=True),
    "clip, schedule": lambda: keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(0.1, 20), global_clipnorm=0.5
    ),
    "clipvalue": lambda: keras.optimizers.SGD(0.05, clipvalue=0.1),
}


def started(optimizer, steps=5):
    rng = np.random.default_rng(0)
    layer = keras.layers.Dense(SHAPES["dense/kernel"][1], name="dense")
    layer.build((None, SHAPES["dense/kernel"][0]))
    variables = layer.trainable_variables
    for v in variables:
        v.assign(rng.normal(size=v.shape))
    grads = [[rng.normal(size=s).astype("float32") for s in SHAPES.values()] for _ in range(2 * steps)]
    optimizer.build(variables)
    for g in grads[:steps]:
        optimizer.apply(g, variables)
    return variables, grads[steps:]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_steps_are_those_of_keras(name):
    optimizer = OPTIMIZERS[name]()
    (kernel, bias), grads = started(optimizer)
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


def test_params_in_a_list():
    optimizer = keras.optimizers.Adam(0.05)
    variables, _ = started(optimizer)
    _, state = from_keras(optimizer, [jnp.asarray(v.value) for v in variables])
    assert [x.shape for x in state[0].mu] == [(4, 3), (3,)] and int(state[0].count) == 5


def test_refusals():
    adam = keras.optimizers.Adam
    w = {"dense": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}}
    for optimizer, error, says in (
        (adam(0.1), ValueError, "is not built"),
        (keras.optimizers.Muon(0.1), TypeError, "got Muon, which has not been compared"),
        (adam(0.1, use_ema=True), ValueError, "use_ema=True is running means"),
        (adam(0.1, gradient_accumulation_steps=2), ValueError, "gradient_accumulation_steps=2 is accumulation"),
        (keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1), ValueError, "does not stand before the rate"),
    ):
        if says != "is not built":
            started(optimizer)
        with pytest.raises(error, match=says):
            from_keras(optimizer, w)
    optimizer = adam(0.1)
    started(optimizer)
    with pytest.raises(ValueError, match="params has 1 leaves, but the optimizer has 2 variables"):
        from_keras(optimizer, {"kernel": jnp.zeros((4, 3))})
    with pytest.raises(ValueError, match="params has no leaf for the variable 'dense/bias'"):
        from_keras(optimizer, {"kernel": jnp.zeros((4, 3)), "offset": jnp.zeros(3)})
