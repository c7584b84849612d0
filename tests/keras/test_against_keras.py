"""Random settings and gradients, live against the real optimizers of Keras 3 on JAX."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import random

import keras as real
import numpy as np
import pytest

from functional_opt import keras

SHAPES = [(4, 3), (5,), (2, 3), ()]
CLASSES = [
    *("SGD", "RMSprop", "Adam", "AdamW", "Adamax", "Nadam", "Adagrad", "Adadelta", "Ftrl", "Lion", "Lamb"),
    *("Adafactor", "Muon", "ScheduleFreeAdamW"),
]
OWN = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "Adam": {"amsgrad": True},
}
MORE = [
    {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 3},
    {"gradient_accumulation_steps": 2},
    {"global_clipnorm": 0.7},
    {"weight_decay": 0.05},
    {"loss_scale_factor": 4.0},
]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_the_same_trajectory(name):
    """Weights and all that the optimizers keep, with gradients that are missing and a learning rate assigned."""
    chance, rng = random.Random(name), np.random.default_rng(len(name))
    options = {"learning_rate": 0.05} | OWN.get(name, {})
    for more in chance.sample(MORE, 2):
        options |= more
    theirs, ours = (
        getattr(real.optimizers, name)(**options),
        getattr(keras.optimizers, name)(**options, dialect="keras3"),
    )
    values = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]
    their_variables = [real.Variable(x, name=f"v{i}") for i, x in enumerate(values)]
    our_variables = [keras.Variable(x, name=f"v{i}") for i, x in enumerate(values)]
    theirs.build(their_variables)
    ours.build(our_variables)
    for step in range(6):
        if step == 3:
            theirs.learning_rate = ours.learning_rate = 0.02
        grads = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]
        grads[1:] = [g if chance.random() < 0.8 else None for g in grads[1:]]
        theirs.apply(grads, their_variables)
        ours.apply(grads, our_variables)
        pairs = zip([*our_variables, *ours.variables], [*their_variables, *theirs.variables], strict=True)
        for our, their in pairs:
            expected = real.ops.convert_to_numpy(their.value)
            np.testing.assert_allclose(our.value, expected, rtol=3e-4, atol=5e-6, err_msg=f"{their.path}, {step}")


@pytest.mark.parametrize("assigned", [{3: 25}, {2: 25, 4: 1}, {4: 0}], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_iterations_that_are_assigned(name, assigned):
    """Bias corrections, warm-ups and averages go on from the number that `iterations` is set to before a step."""
    rng, options = np.random.default_rng(len(name)), {"learning_rate": 0.05} | OWN.get(name, {})
    theirs = getattr(real.optimizers, name)(**options)
    ours = getattr(keras.optimizers, name)(**options, dialect="keras3")
    values = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]
    their_variables, our_variables = [real.Variable(x) for x in values], [keras.Variable(x) for x in values]
    theirs.build(their_variables)
    for step in range(6):
        if step in assigned:
            theirs.iterations.assign(assigned[step])
            ours.iterations.assign(assigned[step])
        grads = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]
        theirs.apply(grads, their_variables)
        ours.apply(grads, our_variables)
        for our, their in zip(our_variables, their_variables, strict=True):
            expected = real.ops.convert_to_numpy(their.value)
            np.testing.assert_allclose(our.value, expected, rtol=1e-4, atol=5e-6, err_msg=f"{step}")
