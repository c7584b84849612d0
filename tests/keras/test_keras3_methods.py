"""What Keras 3 added: stateless_apply, saving, running means, exclusion from decay; and copies."""

import copy
import pickle

import jax
import numpy as np
import pytest

from functional_opt.keras import Variable
from functional_opt.keras.optimizers import SGD, Adam, AdamW, Muon, Nadam, RMSprop, schedules

from .helpers import assert_close, assert_same

GRADS = [np.float32([[0.5, -1.0], [2.0, 0.25]]), np.float32([1.0, -0.5])]
EVERY = {
    "adam": lambda: Adam(0.1, dialect="keras3"),
    "adam, keras2": lambda: Adam(0.1),
    "means": lambda: SGD(0.1, momentum=0.9, use_ema=True, ema_overwrite_frequency=3, dialect="keras3"),
    "accumulation": lambda: RMSprop(0.1, gradient_accumulation_steps=2, dialect="keras3"),
    "decay": lambda: AdamW(schedules.ExponentialDecay(0.1, 2, 0.5), clipnorm=0.5, loss_scale_factor=2.0),
    "muon": lambda: Muon(0.1),
    "nadam": lambda: Nadam(0.1),
}


def variables():
    return [Variable([[1.0, 2.0], [3.0, 4.0]], name="kernel"), Variable([1.0, -1.0], name="bias")]


def steps(opt, vs, n=3):
    for _ in range(n):
        opt.apply(GRADS, vs)
    return [v.numpy() for v in vs]


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_stateless_apply_is_apply(make):
    opt, vs = make(), variables()
    opt.build(vs)
    pure = jax.jit(opt.stateless_apply)
    values, own = [v.value for v in vs], [v.value for v in opt.variables]
    before = opt.get_weights()
    for _ in range(4):
        values, own = pure(own, GRADS, values)
    assert_same(opt.get_weights(), before)
    assert_same([v.numpy() for v in vs], [v.numpy() for v in variables()])
    assert_close(steps(opt, vs, 4), values)
    assert_close(opt.get_weights(), own)


def test_stateless_apply_refuses():
    opt, vs = Adam(0.1), variables()
    with pytest.raises(ValueError, match="the optimizer is not built"):
        opt.stateless_apply([], GRADS, vs)
    opt.build(vs)
    with pytest.raises(ValueError, match="grads must have 2 arrays, got 1"):
        opt.stateless_apply(opt.get_weights(), GRADS[:1], [v.value for v in vs])
    with pytest.raises(ValueError, match=r"gradient of kernel:0 has shape \(2,\)"):
        opt.stateless_apply(opt.get_weights(), GRADS[::-1], [v.value for v in vs])
    assert int(opt.iterations) == 0
    with pytest.raises(ValueError, match="there are 1 gradients for 2 variables"):
        opt.apply(GRADS[:1], vs)
    with pytest.raises(ValueError, match=r"2 gradients for 0 variables: call optimizer.build\(variables\) first"):
        Adam(0.1).apply(GRADS)


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("built", [False, True])
def test_copies_go_on_by_themselves(make, built):
    opt, vs = make(), variables()
    steps(opt, vs, 2 * built)
    twin = copy.deepcopy(opt)
    weights, values = opt.get_weights(), [v.value for v in vs]
    steps(opt, vs)
    assert_same(twin.get_weights(), weights)
    after = [v.numpy() for v in vs]
    for v, x in zip(vs, values, strict=True):
        v.assign(x)
    assert_same(steps(twin, vs), after)
    assert_same(twin.get_weights(), opt.get_weights())


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_a_pickled_optimizer_takes_variables_of_the_same_path(make):
    opt, vs = make(), variables()
    steps(opt, vs)
    thawed, twins = pickle.loads(pickle.dumps(opt)), variables()
    for twin, v in zip(twins, vs, strict=True):
        twin.assign(v.value)
    assert_same(steps(thawed, twins), steps(opt, vs))
    assert_same(thawed.get_weights(), opt.get_weights())
    another = Variable([0.0, 0.0], name="bias")
    thawed.apply_gradients([(GRADS[1], another)])
    assert [key for key in thawed._engine.store.variables] == ["kernel", "bias", "2/bias"]


def test_saving_and_loading():
    opt, vs, store = Adam(0.1, dialect="keras3"), variables(), {}
    steps(opt, vs)
    opt.save_own_variables(store)
    assert sorted(store) == ["0", "1", "2", "3", "4", "5"]
    twin = Adam(0.1, dialect="keras3")
    twin.load_own_variables(store)
    twin.build(vs)
    assert_same(twin.get_weights(), opt.get_weights())
    del store["5"]
    with pytest.raises(ValueError, match="weight list of length 5, but the optimizer was expecting 6 weights"):
        twin.load_own_variables(store)
    assert_same(twin.get_weights(), opt.get_weights())


def test_running_means():
    v, w = Variable(0.0, name="v"), Variable(0.0, name="w", constraint=lambda x: jax.numpy.clip(x, -1, 1))
    opt = SGD(1.0, use_ema=True, ema_momentum=0.5)
    for _ in range(3):
        opt.apply_gradients([(-1.0, v), (-1.0, w)])
    # 1, then (1 + 2)/2, then (1.5 + 3)/2; the means are of the values as the constraint leaves them
    opt.finalize_variable_values([v, w])
    assert (float(v), float(w)) == (2.25, 1.0)


def test_accumulation_makes_one_update_of_many_gradients():
    rate = schedules.PiecewiseConstantDecay([0], [1.0, 0.5])
    v, opt = Variable(0.0, name="v"), SGD(rate, gradient_accumulation_steps=2)
    seen = []
    for g in (1.0, 3.0, 2.0, 2.0):
        opt.apply_gradients([(g, v)])
        seen.append(float(v))
    assert seen == [0.0, -2.0, -2.0, -3.0]  # the schedule advances with the updates
    assert int(opt.iterations) == 4


def test_a_constraint_waits_for_the_update():
    v = Variable(3.0, name="v", constraint=lambda x: jax.numpy.clip(x, -1, 1))
    opt, seen = SGD(1.0, gradient_accumulation_steps=2), []
    for _ in range(2):
        opt.apply_gradients([(0.0, v)])
        seen.append(float(v))
    assert seen == [3.0, 1.0]


def test_weight_decay_and_what_is_kept_from_it():
    kernel, bias = variables()
    opt = SGD(0.5, weight_decay=0.5)
    opt.exclude_from_weight_decay(var_names=["bias"])
    opt.apply_gradients([(np.zeros((2, 2), np.float32), kernel), (np.zeros(2, np.float32), bias)])
    assert_close([kernel.numpy(), bias.numpy()], [0.75 * np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, -1.0])])
    opt.exclude_from_weight_decay([kernel])  # also after the first step
    opt.apply_gradients([(np.zeros((2, 2), np.float32), kernel)])
    assert float(kernel[0, 0]) == 0.75
    loaded = pickle.loads(pickle.dumps(opt))  # where variables are known by their paths
    twin, other = Variable(1.0, name="kernel"), Variable(1.0, name="kernel_2")
    loaded.apply([0.0, 0.0], [twin, other])
    assert (float(twin), float(other)) == (1.0, 0.75)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ema_momentum": 1.5, "use_ema": True}, r"ema_momentum must be in \[0, 1\], got 1.5"),
        ({"ema_overwrite_frequency": 0}, r"ema_overwrite_frequency must be in \[1, \d+\] or None, got 0"),
        ({"gradient_accumulation_steps": 1}, r"gradient_accumulation_steps must be in \[2, \d+\] or None, got 1"),
        ({"dialect": "keras4"}, "dialect must be 'keras2' or 'keras3', got 'keras4'"),
        ({"weight_decay": -0.1}, "Expected weight_decay >= 0, received: -0.1"),
    ],
)
def test_refused_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SGD(0.1, **kwargs)


def test_scaled_losses_and_the_present_rate():
    opt = SGD(schedules.ExponentialDecay(1.0, 1, 0.5), loss_scale_factor=4.0, decay=1.0)
    v = Variable(0.0, name="v")
    assert float(opt.scale_loss(2.0)) == 8.0 and float(opt.current_learning_rate()) == 1.0
    opt.apply_gradients([(4.0, v)])
    assert float(v) == -1.0 and float(opt.current_learning_rate()) == 0.25
    assert opt.variables() == opt.variables
