"""get_config and from_config, through JSON."""

import json

import pytest

from functional_opt import exponential_decay
from functional_opt.keras import Variable
from functional_opt.keras.optimizers import SGD, Adam, RMSprop, schedules

from .helpers import assert_same, make_gradients, make_variables, train


class Halving(schedules.LearningRateSchedule):
    def __init__(self, start):
        self.start = start

    def __call__(self, step):
        return self.start * 0.5**step


OPTIMIZERS = [
    SGD(0.1, momentum=0.9, nesterov=True, clipvalue=0.5, clipnorm=0.25, name="mine"),
    SGD(schedules.PolynomialDecay(0.5, 4, cycle=True), decay=0.1, global_clipnorm=1.0),
    RMSprop(schedules.PiecewiseConstantDecay([2], [0.1, 0.01]), rho=0.8, momentum=0.5, epsilon=1e-3, centered=True),
    Adam(schedules.CosineDecay(0.0, 5, warmup_target=0.1, warmup_steps=2), 0.8, 0.99, amsgrad=True),
    Adam(Halving(0.1), epsilon=0.1),
]


@pytest.mark.parametrize("opt", OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_there_and_back(opt):
    config = opt.get_config()
    twin = type(opt).from_config(json.loads(json.dumps(config)), custom_objects={"Halving": Halving})
    assert twin.get_config() == config
    gradients = make_gradients(5)
    assert_same(train(twin, make_variables(), gradients), train(opt, make_variables(), gradients))


def test_each_shared_argument_that_is_set_is_in_the_config():
    given = {
        "weight_decay": 0.01,
        "clipnorm": 0.5,
        "clipvalue": 0.25,
        "use_ema": True,
        "ema_momentum": 0.75,
        "ema_overwrite_frequency": 3,
        "loss_scale_factor": 2.0,
        "gradient_accumulation_steps": 4,
    }
    config = SGD(0.1, **given).get_config()
    assert {name: config.get(name) for name in given} == given
    assert SGD.from_config(config).get_config() == config
    assert not given.keys() & SGD(0.1).get_config().keys()
    assert SGD(0.1, global_clipnorm=1.0).get_config()["global_clipnorm"] == 1.0


def test_numbers_are_as_they_are_now_and_short():
    opt = Adam(0.5, clipnorm=2)
    opt.learning_rate, opt.beta_1, opt.beta_2 = 0.01, Variable(0.8), lambda: 0.7
    assert opt.get_config() == {
        "name": "Adam",
        "clipnorm": 2,
        "learning_rate": 0.01,
        "decay": 0.0,
        "beta_1": 0.8,
        "beta_2": 0.7,
        "epsilon": 1e-7,
        "amsgrad": False,
    }


def test_a_schedule_in_a_config():
    schedule = schedules.ExponentialDecay(0.1, 10, 0.5, staircase=True)
    config = SGD(schedule).get_config()["learning_rate"]
    inner = {"initial_learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.5, "staircase": True, "name": None}
    assert config == {
        "module": "keras.optimizers.schedules",
        "class_name": "ExponentialDecay",
        "config": inner,
        "registered_name": None,
    }
    old = SGD.from_config({"learning_rate": {"class_name": "ExponentialDecay", "config": inner}})
    assert old.learning_rate.get_config() == schedule.get_config()


def test_an_unknown_schedule():
    config = SGD(Halving(0.1)).get_config()
    assert config["learning_rate"]["registered_name"] == "Halving"
    with pytest.raises(ValueError, match="Unknown learning-rate schedule 'Halving'; known are .*'ExponentialDecay'"):
        SGD.from_config(config)
    with pytest.raises(ValueError, match="Unknown learning-rate schedule None"):
        SGD.from_config({"learning_rate": {}})


def test_from_config_leaves_the_config_alone_and_knows_lr():
    config = {"lr": 0.5, "name": "mine"}
    assert float(SGD.from_config(config).learning_rate) == 0.5
    assert config == {"lr": 0.5, "name": "mine"}
    with pytest.raises(TypeError, match="Unexpected keyword argument passed to optimizer: rho"):
        SGD.from_config(config | {"rho": 0.9})


@pytest.mark.parametrize("rate", [exponential_decay(0.1, 10, 0.5), lambda step: 0.1 / (1 + step)])
def test_what_has_no_config(rate):
    with pytest.raises(TypeError, match="learning_rate is .*; a config takes a schedule of functional_opt.keras"):
        SGD(rate).get_config()


def test_state_is_no_part_of_it():
    opt = Adam(0.1)
    train(opt, make_variables(), make_gradients(2))
    twin = Adam.from_config(opt.get_config())
    assert (int(twin.iterations), twin.get_slot_names()) == (0, [])


def test_the_generation_that_wrote_a_config_decides_the_results():
    """RMSprop's and others' numbers differ between them, and only Keras 3's configs have these entries."""
    keras3 = RMSprop(0.1, dialect="keras3").get_config()
    del keras3["dialect"]
    of_tf_2_13 = {"name": "RMSprop", "weight_decay": None, "jit_compile": True, "is_legacy_optimizer": False}
    assert [RMSprop.from_config(c).dialect for c in (keras3, of_tf_2_13)] == ["keras3", "keras3"]
    set_here = RMSprop(0.1, loss_scale_factor=2.0, gradient_accumulation_steps=2)
    old = (RMSprop(0.1).get_config(), set_here.get_config(), {"name": "r", "is_legacy_optimizer": True}, {})
    assert {RMSprop.from_config(c).dialect for c in old} == {"keras2"}


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: Adam(0.1, 0.9, 0.999, 1e-7, False, 0.01),
            r"name must be a string, got 0.01 .*weight_decay has this pl",
        ),
        (lambda: Adam(name=["a"]), r"name must be a string, got \['a'\] \(list\)$"),
        (lambda: SGD(nesterov="yes"), r"nesterov of SGD must be True or False, got 'yes'"),
        (lambda: Adam(amsgrad=0.5), r"amsgrad of Adam must be True or False, got 0.5"),
        (lambda: SGD().exclude_from_weight_decay(var_names="bias"), r"var_names must be a list .*write \['bias'\]"),
    ],
)
def test_arguments_that_mean_something_else(make, message):
    with pytest.raises(TypeError, match=message):
        make()
