"""Optimizers from names and configs, in both of Keras's formats, and copies."""

import json

import numpy as np
import pytest

import functional_opt as fo
from functional_opt.keras import Variable, optimizers
from functional_opt.keras.optimizers import SGD, Adam, AdamW, Optimizer, deserialize, get, schedules, serialize
from functional_opt.keras.optimizers.serialization import CLASSES

EXAMPLES = {
    "LossScaleOptimizer": lambda: optimizers.LossScaleOptimizer(SGD(0.5), initial_scale=1.0),
    "MultiOptimizer": lambda: optimizers.MultiOptimizer(optimizers.OptimizerMap(SGD(0.5), {"w": Adam(0.5)})),
    "MomentumOptimizer": lambda: optimizers.MomentumOptimizer(0.125, 0.5),
}
OPTIMIZERS = [name for name, cls in CLASSES.items() if issubclass(cls, Optimizer)]
COMPLETE = [name for name in OPTIMIZERS if name not in (*EXAMPLES, *vars(optimizers.legacy))] + ["AdamOptimizer"]
"""Those whose arguments all have defaults."""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_class_goes_to_json_and_back_and_trains_the_same(name):
    opt = EXAMPLES.get(name, lambda: CLASSES[name](0.125))()
    twin = deserialize(json.loads(json.dumps(serialize(opt))))
    assert type(twin) is type(opt) and twin.get_config() == opt.get_config()
    values = []
    for each in (opt, twin):
        v = Variable([[1.0, -2.0], [3.0, 0.5]], name="v")
        each.apply_gradients([(np.full((2, 2), 0.5, np.float32), v)])
        values.append(v.numpy())
    np.testing.assert_array_equal(*values)
    assert (values[0] != [[1.0, -2.0], [3.0, 0.5]]).any()


@pytest.mark.parametrize("name", [form(name) for name in COMPLETE for form in (str, str.lower, str.upper)])
def test_names_in_any_case(name):
    assert type(get(name)).__name__.lower() == name.lower()


def test_what_get_takes():
    opt = SGD(0.5)
    assert get(opt) is opt
    assert get({"class_name": "SGD", "config": {"learning_rate": 0.25}}).get_config()["learning_rate"] == 0.25
    v = Variable(1.0, name="v")
    get(fo.sgd(0.5)).apply_gradients([(1.0, v)])
    assert float(v) == 0.5
    for wrong in (None, 1, SGD):
        with pytest.raises(ValueError, match="Could not interpret optimizer identifier"):
            get(wrong)
    with pytest.raises(ValueError, match=r"Unknown optimizer: 'sgdd'. Known are \['Adadelta'"):
        get("sgdd")
    with pytest.raises(ValueError, match="LossScaleOptimizer needs 'inner_optimizer' in its config"):
        get("lossscaleoptimizer")
    with pytest.raises(TypeError, match="config must be a dict with a class_name"):
        deserialize({"config": {}})


def test_schedules_and_custom_classes_in_a_config():
    class Mine(Adam):
        pass

    class Halves(schedules.LearningRateSchedule):
        def __init__(self, start):
            self.start = start

        def __call__(self, step):
            return self.start * 0.5**step

    config = json.loads(json.dumps(serialize(Mine(Halves(2.0)))))
    assert config["registered_name"] == "Mine" and config["config"]["learning_rate"]["class_name"] == "Halves"
    with pytest.raises(ValueError, match="Unknown optimizer: 'Mine'"):
        deserialize(config)
    twin = deserialize(config, custom_objects={"Mine": Mine, "Halves": Halves})
    assert isinstance(twin, Mine) and float(twin.current_learning_rate()) == 2.0


def test_the_dialect_is_part_of_a_config():
    assert "dialect" not in AdamW().get_config()
    config = Adam(dialect="keras3").get_config()
    assert config["dialect"] == "keras3" and config["name"] == "adam"
    assert Optimizer.from_config.__func__(Adam, config).get_config() == config
