"""The numbers of each class: wrong ones are refused by name, when it is made and when they are assigned."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt.keras import Variable
from functional_opt.keras.optimizers import Adadelta, Adam, Muon, ScheduleFreeAdamW
from functional_opt.keras.optimizers.serialization import CLASSES

AROUND_OTHERS = {"LossScaleOptimizer", "MultiOptimizer", "OptimizerMap"}
NOT_NUMBERS = {"name", "args", "kwargs", "exclude_layers", "accum_name", "linear_name"}
OF_ALL_CLASSES = {"weight_decay"}
PLACES = [
    (cls, p.name)
    for cls in CLASSES.values()
    if cls.__name__ not in AROUND_OTHERS
    for p in inspect.signature(cls).parameters.values()
    if p.name not in NOT_NUMBERS | OF_ALL_CLASSES and not isinstance(p.default, bool | str)
]
ATTRIBUTES = {"schedule_decay": "decay"}
"""The attributes that have another name than their argument, besides TF1's, which are in `renamed`."""
ANY_SIGN, NOT_POSITIVE = {"muon_a", "muon_b", "muon_c"}, {"beta_2_decay", "learning_rate_power"}
INFINITE = {"clip_threshold"}
WRONG = [
    *(np.nan, np.float32(np.nan), -np.inf, "0.5", "", True, False, 0.5j, 0j),
    *([0.5], [], np.full(2, 0.5), np.zeros(1), jnp.zeros(1), float),
]


def make(cls, **kwargs):
    needed = {p.name: 0.5 for p in inspect.signature(cls).parameters.values() if p.default is p.empty}
    return cls(**{k: x for k, x in needed.items() if k not in ("args", "kwargs")} | kwargs)


def wrong_numbers(argument):
    beyond = [] if argument in ANY_SIGN else [0.5 if argument in NOT_POSITIVE else -0.5]
    return [*WRONG, *beyond, *([] if argument in INFINITE else [np.inf])]


each_number = pytest.mark.parametrize("cls, argument", PLACES, ids=lambda x: getattr(x, "__name__", x))


@each_number
def test_a_wrong_number_is_refused(cls, argument):
    for x in wrong_numbers(argument):
        with pytest.raises((TypeError, ValueError), match=rf"\b{argument}\b") as refused:
            make(cls, **{argument: x})
        if np.ndim(x) == 0 and not isinstance(x, type):
            assert str(x) in str(refused.value)


@each_number
def test_a_wrong_number_is_not_assigned(cls, argument):
    tf1 = {there: here for here, there in getattr(cls, "renamed", {}).items()}
    attribute = (ATTRIBUTES | tf1).get(argument, argument)
    opt = make(cls)
    before = opt.get_config()
    for x in wrong_numbers(argument):
        with pytest.raises((TypeError, ValueError), match=rf"\b{attribute}\b"):
            setattr(opt, attribute, x)
        assert opt.get_config() == before


def test_the_ends_of_ranges():
    opt = Muon(rms_rate=None, adam_weight_decay=None, momentum=1, muon_b=-4, ns_steps=np.int32(3), adam_lr_ratio=0)
    assert (opt.rms_rate, opt.adam_weight_decay, opt.ns_steps) == (None, None, 3)
    for name, x in {"ns_steps": 2.5, "adam_beta_1": 1, "momentum": 1.5}.items():
        with pytest.raises((TypeError, ValueError), match=name):
            setattr(opt, name, x)
    with pytest.raises(TypeError, match="warmup_steps must be a whole number"):
        ScheduleFreeAdamW(warmup_steps=0.5)
    opt = Adadelta(epsilon=0)
    assert opt.epsilon == 1e-7
    with pytest.raises(ValueError, match=r"epsilon must be in \(0, inf\), got 0"):
        opt.epsilon = 0


def test_an_epsilon_may_be_any_kind_of_real_number():
    opt = Adam()
    for x in (1, np.float64(1), np.array(1), jnp.array(1.0), Variable(1.0)):
        opt.epsilon = x
        v = Variable(0.0)
        opt.apply_gradients([(1.0, v)])
        assert float(Adam(epsilon=x).epsilon) == 1
    with pytest.raises(TypeError, match=r"epsilon must be a number in \[0, inf\), got None"):
        opt.epsilon = None
