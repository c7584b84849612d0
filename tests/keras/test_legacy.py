"""TF1's optimizers against its update equations in NumPy, float64, and against what TF1 promises in signatures."""

import inspect
import json

import jax
import numpy as np
import pytest

from functional_opt.keras import IndexedSlices, Variable
from functional_opt.keras.optimizers import legacy, schedules

from .helpers import assert_close, assert_same, make_gradients, make_variables, train

SIGNATURES = {
    "GradientDescentOptimizer": "learning_rate, use_locking=False, name='GradientDescent'",
    "MomentumOptimizer": "learning_rate, momentum, use_locking=False, name='Momentum', use_nesterov=False",
    "AdagradOptimizer": "learning_rate, initial_accumulator_value=0.1, use_locking=False, name='Adagrad'",
    "AdadeltaOptimizer": "learning_rate=0.001, rho=0.95, epsilon=1e-08, use_locking=False, name='Adadelta'",
    "AdamOptimizer": ("learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-08, use_locking=False, name='Adam'"),
    "RMSPropOptimizer": (
        "learning_rate, decay=0.9, momentum=0.0, epsilon=1e-10, use_locking=False, centered=False, name='RMSProp'"
    ),
    "FtrlOptimizer": (
        "learning_rate, learning_rate_power=-0.5, initial_accumulator_value=0.1, l1_regularization_strength=0.0, "
        "l2_regularization_strength=0.0, use_locking=False, name='Ftrl', accum_name=None, linear_name=None, "
        "l2_shrinkage_regularization_strength=0.0, beta=None"
    ),
}
METHODS = {
    "minimize": (
        "loss, global_step=None, var_list=None, gate_gradients=1, aggregation_method=None, "
        "colocate_gradients_with_ops=False, name=None, grad_loss=None"
    ),
    "compute_gradients": (
        "loss, var_list=None, gate_gradients=1, aggregation_method=None, colocate_gradients_with_ops=False, "
        "grad_loss=None"
    ),
    "apply_gradients": "grads_and_vars, global_step=None, name=None",
    "get_name": "",
    "get_slot": "var, slot_name",
    "get_slot_names": "",
}
CLASSES = [getattr(legacy, name) for name in SIGNATURES]
by_name = pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)


def make(cls, learning_rate=0.5, **kwargs):
    """With momentum, where it must be given."""
    more = {"momentum": 0.5} if cls is legacy.MomentumOptimizer else {}
    return cls(learning_rate, **(more | kwargs))


# Signatures


def unannotated(fn):
    parameters = inspect.signature(fn).parameters.values()
    return ", ".join(str(p.replace(annotation=p.empty)).replace(" = ", "=") for p in parameters if p.name != "self")


@by_name
def test_arguments_their_order_and_defaults(cls):
    assert unannotated(cls) == SIGNATURES[cls.__name__]


@pytest.mark.parametrize("method", METHODS)
def test_methods(method):
    assert unannotated(getattr(legacy.AdamOptimizer, method)) == METHODS[method]


# Numbers: a step of each rule, as TensorFlow documents it (raw_ops.ApplyMomentum, ApplyAdagrad, ApplyAdadelta,
# ApplyAdam, ApplyRMSProp, ApplyCenteredRMSProp, ApplyFtrlV2), for weights w, which are written to, gradients g and
# slots s; t counts from 1.


def gradient_descent(w, g, s, t, learning_rate):
    w -= learning_rate * g


def momentum(w, g, s, t, learning_rate, momentum, use_nesterov=False):
    s["momentum"] = momentum * s["momentum"] + g
    w -= learning_rate * (g + momentum * s["momentum"] if use_nesterov else s["momentum"])


def adagrad(w, g, s, t, learning_rate, initial_accumulator_value=0.1):
    s["accumulator"] += g**2
    w -= learning_rate * g / np.sqrt(s["accumulator"])


def adadelta(w, g, s, t, learning_rate=0.001, rho=0.95, epsilon=1e-8):
    s["accum"] = rho * s["accum"] + (1 - rho) * g**2
    u = np.sqrt(s["accum_update"] + epsilon) / np.sqrt(s["accum"] + epsilon) * g
    s["accum_update"] = rho * s["accum_update"] + (1 - rho) * u**2
    w -= learning_rate * u


def adam(w, g, s, t, learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-8):
    s["m"] = beta1 * s["m"] + (1 - beta1) * g
    s["v"] = beta2 * s["v"] + (1 - beta2) * g**2
    w -= learning_rate * np.sqrt(1 - beta2**t) / (1 - beta1**t) * s["m"] / (np.sqrt(s["v"]) + epsilon)


def rmsprop(w, g, s, t, learning_rate, decay=0.9, momentum=0.0, epsilon=1e-10, centered=False):
    s["rms"] = decay * s["rms"] + (1 - decay) * g**2
    if centered:
        s["mg"] = decay * s["mg"] + (1 - decay) * g
    variance = s["rms"] - s["mg"] ** 2 if centered else s["rms"]
    s["momentum"] = momentum * s["momentum"] + learning_rate * g / np.sqrt(variance + epsilon)
    w -= s["momentum"]


def ftrl(
    w,
    g,
    s,
    t,
    learning_rate,
    learning_rate_power=-0.5,
    initial_accumulator_value=0.1,
    l1_regularization_strength=0.0,
    l2_regularization_strength=0.0,
    l2_shrinkage_regularization_strength=0.0,
    beta=None,
):
    l1, l2 = l1_regularization_strength, l2_regularization_strength + (beta or 0.0) / (2 * learning_rate)
    before, after = (n**-learning_rate_power for n in (s["accum"], s["accum"] + g**2))
    shrinkage = 2 * l2_shrinkage_regularization_strength * w
    s["linear"] += g + shrinkage - (after - before) / learning_rate * w
    s["accum"] += g**2
    quadratic, chosen = after / learning_rate + 2 * l2, np.abs(s["linear"]) > l1
    w[:] = np.where(chosen, (np.sign(s["linear"]) * l1 - s["linear"]) / np.where(chosen, quadratic, 1.0), 0.0)


TINY = {"initial_accumulator_value": 1e-12}  # so that an epsilon would be seen
PENALTIES = {
    "l1_regularization_strength": 0.125,
    "l2_regularization_strength": 0.25,
    "l2_shrinkage_regularization_strength": 0.5,
    "beta": 2.0,
}
RULES = [
    ("GradientDescentOptimizer", {"learning_rate": 0.5}, gradient_descent, {}),
    ("MomentumOptimizer", {"learning_rate": 0.5, "momentum": 0.75}, momentum, {"momentum": 0}),
    ("MomentumOptimizer", {"learning_rate": 0.5, "momentum": 0.75, "use_nesterov": True}, momentum, {"momentum": 0}),
    ("MomentumOptimizer", {"learning_rate": 0.5, "momentum": 0.0}, momentum, {"momentum": 0}),
    ("AdagradOptimizer", {"learning_rate": 0.5}, adagrad, {"accumulator": 0.1}),
    ("AdagradOptimizer", {"learning_rate": 0.5, **TINY}, adagrad, {"accumulator": 1e-12}),
    ("AdadeltaOptimizer", {"learning_rate": 0.5, "rho": 0.75}, adadelta, {"accum": 0, "accum_update": 0}),
    (
        "AdadeltaOptimizer",
        {"learning_rate": 0.5, "rho": 0.5, "epsilon": 0.125},
        adadelta,
        {"accum": 0, "accum_update": 0},
    ),
    ("AdamOptimizer", {"learning_rate": 0.5, "beta1": 0.75, "beta2": 0.875}, adam, {"m": 0, "v": 0}),
    ("AdamOptimizer", {"learning_rate": 0.5, "beta1": 0.5, "beta2": 0.5, "epsilon": 0.125}, adam, {"m": 0, "v": 0}),
    ("RMSPropOptimizer", {"learning_rate": 0.5, "decay": 0.25}, rmsprop, {"rms": 1, "momentum": 0}),
    (
        "RMSPropOptimizer",
        {"learning_rate": 0.5, "decay": 0.25, "momentum": 0.5, "epsilon": 0.125},
        rmsprop,
        {"rms": 1, "momentum": 0},
    ),
    (
        "RMSPropOptimizer",
        {"learning_rate": 0.5, "decay": 0.75, "momentum": 0.5, "centered": True},
        rmsprop,
        {"rms": 1, "mg": 0, "momentum": 0},
    ),
    ("FtrlOptimizer", {"learning_rate": 0.5}, ftrl, {"accum": 0.1, "linear": 0}),
    ("FtrlOptimizer", {"learning_rate": 0.5, **PENALTIES}, ftrl, {"accum": 0.1, "linear": 0}),
    (
        "FtrlOptimizer",
        {"learning_rate": 0.5, "learning_rate_power": -0.25, "initial_accumulator_value": 0.0},
        ftrl,
        {"accum": 0, "linear": 0},
    ),
]
all_rules = pytest.mark.parametrize(
    "name, kwargs, rule, start", RULES, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(RULES)]
)
SHAPE, STEPS = (4, 3), 10


def weights_and_slots(start):
    return np.random.default_rng(1).standard_normal(SHAPE), {
        name: np.full(SHAPE, float(x)) for name, x in start.items()
    }


def gradients():
    """From 100 down to 1e-9, where epsilons count, with a 0 here and there."""
    rng = np.random.default_rng(2)
    size = 100.0 / 10.0 ** np.arange(12).reshape(SHAPE)
    return [rng.standard_normal(SHAPE) * size * (rng.random(SHAPE) > 0.1) for _ in range(STEPS)]


def check(name, kwargs, w, slots, steps):
    """Applies the gradients of `steps`, each with what does the same to w and slots; the rate halves on the way."""
    with jax.enable_x64(True):
        v, opt = Variable(w, name="v"), getattr(legacy, name)(**kwargs)
        for t, (g, reference) in enumerate(steps, 1):
            if t == STEPS // 2:
                kwargs = kwargs | {"learning_rate": kwargs["learning_rate"] / 2}
                opt.learning_rate = kwargs["learning_rate"]
            opt.apply_gradients([(g, v)])
            reference(t, **kwargs)
            np.testing.assert_allclose(v.numpy(), w, rtol=1e-10, atol=1e-14, err_msg=f"step {t}")
            for slot, x in slots.items():
                found = opt.get_slot(v, slot).numpy()
                np.testing.assert_allclose(found, x, rtol=1e-10, atol=1e-30, err_msg=f"{slot}, step {t}")
        assert sorted(opt.get_slot_names()) == sorted(slots)
        assert int(opt.iterations) == STEPS


@all_rules
def test_dense(name, kwargs, rule, start):
    w, slots = weights_and_slots(start)
    check(name, kwargs, w, slots, [(g, lambda t, g=g, **kw: rule(w, g, slots, t, **kw)) for g in gradients()])


@all_rules
def test_sparse(name, kwargs, rule, start):
    """Rows that have no gradient stay as they are, slots too; Adam's move, and its slots decay."""
    w, slots = weights_and_slots(start)

    def on_rows(rows, g):
        def reference(t, **kw):
            if name == "AdamOptimizer":
                dense = np.zeros(SHAPE)
                np.add.at(dense, rows, g)
                return rule(w, dense, slots, t, **kw)
            named = np.unique(rows)
            summed = np.stack([g[rows == row].sum(axis=0) for row in named])
            some, kept = w[named], {slot: x[named] for slot, x in slots.items()}
            rule(some, summed, kept, t, **kw)
            w[named] = some
            for slot, x in kept.items():
                slots[slot][named] = x

        return IndexedSlices(g, rows, SHAPE), reference

    with jax.enable_x64(True):
        choices = [np.array(rows) for rows in ([2, 0, 2], [1, 1, 0], [2, 2, 2])]
        steps = [on_rows(choices[t % 3], g[:3]) for t, g in enumerate(gradients())]
    check(name, kwargs, w, slots, steps)


L1 = {"l1_regularization_strength": 0.001}
L1_L2 = L1 | {"l2_regularization_strength": 2.0}
RECORDED = [
    ("AdagradOptimizer", {}, 3, [-1.6026098, -2.296985, 3.7156792, 2.4330513]),
    ("FtrlOptimizer", {}, 3, [-2.55607247, -3.98729396, -0.28232238, -0.56096673]),
    ("FtrlOptimizer", L1, 10, [-7.66718769, -10.91273689, -0.93460727, -1.86147261]),
    ("FtrlOptimizer", L1_L2, 10, [-0.24059935, -0.46829352, -0.02406147, -0.04830509]),
    (
        "FtrlOptimizer",
        L1_L2 | {"l2_shrinkage_regularization_strength": 0.1},
        10,
        [-0.22578995, -0.44345796, -0.14378493, -0.13229476],
    ),
]


@pytest.mark.parametrize("name, kwargs, steps, expected", RECORDED)
def test_outcomes_that_tensorflow_states_in_its_own_tests(name, kwargs, steps, expected):
    v, opt = Variable([1.0, 2.0, 4.0, 3.0]), getattr(legacy, name)(3.0, **kwargs)
    for _ in range(steps):
        opt.apply_gradients([([0.1, 0.2, 0.01, 0.02], v)])
    np.testing.assert_allclose(v.numpy(), expected, rtol=1e-5)


# Slots


@pytest.mark.parametrize("name, kwargs, start", [(n, k, s) for n, k, _, s in RULES])
def test_slots_at_the_start(name, kwargs, start):
    v, opt = Variable([1.0, 2.0], name="v"), getattr(legacy, name)(**kwargs)
    assert opt.get_slot_names() == []
    opt.build([v])
    assert opt.get_slot_names() == list(start)
    for slot, x in start.items():
        np.testing.assert_array_equal(opt.get_slot(v, slot).numpy(), np.full(2, x, np.float32))
    with pytest.raises(KeyError, match="there is no slot 'vhat'"):
        opt.get_slot(v, "vhat")


@pytest.mark.parametrize(
    "opt, names",
    [
        (legacy.GradientDescentOptimizer(0.5), []),
        (legacy.MomentumOptimizer(0.5, 0.5), ["v/Momentum:0"]),
        (legacy.AdamOptimizer(name="mine"), ["v/mine:0", "v/mine_1:0"]),
        (legacy.RMSPropOptimizer(0.5, centered=True), ["v/RMSProp:0", "v/RMSProp_1:0", "v/RMSProp_2:0"]),
        (legacy.FtrlOptimizer(0.5), ["v/Ftrl:0", "v/Ftrl_1:0"]),
        (legacy.FtrlOptimizer(0.5, accum_name="squares", linear_name="sum"), ["v/squares:0", "v/sum:0"]),
    ],
    ids=lambda x: x.get_name() if isinstance(x, legacy.TF1) else "",
)
def test_names_of_the_slots_variables(opt, names):
    opt.build([Variable(1.0, name="v")])
    assert [w.name for w in opt.variables()] == [f"{opt.get_name()}/iter:0", *names]


# Methods


def test_minimize_takes_the_global_step_second():
    v, step, opt = Variable(1.0, name="v"), Variable(5, trainable=False), legacy.GradientDescentOptimizer(0.25)
    other = Variable(1.0, name="other")
    opt.minimize(lambda: v**2 + other**2, step, [v], 0, None, False, "train", 3.0)
    assert (int(step), float(v), float(other)) == (6, -0.5, 1.0)
    opt.minimize(lambda: v**2 + other**2)
    assert (int(step), int(opt.iterations), float(v), float(other)) == (6, 2, -0.25, 0.5)


def test_in_two_halves():
    v, step, opt = Variable(1.0, name="v"), Variable(5, trainable=False), legacy.GradientDescentOptimizer(0.25)
    pairs = opt.compute_gradients(lambda: v**2, [v], 2, None, False, 3.0)
    assert [(float(g), w) for g, w in pairs] == [(6.0, v)]
    opt.apply_gradients(iter(pairs), step, "train")
    assert (int(step), float(v)) == (6, -0.5)


@pytest.mark.parametrize("method", ["minimize", "compute_gradients"])
def test_a_gate_that_there_is_not(method):
    v = Variable(1.0)
    with pytest.raises(ValueError, match="gate_gradients"):
        getattr(legacy.GradientDescentOptimizer(0.25), method)(lambda: v**2, gate_gradients=3)
    assert float(v) == 1.0


# Configs


FULL = [
    legacy.GradientDescentOptimizer(schedules.ExponentialDecay(0.5, 2, 0.5), use_locking=True, name="mine"),
    legacy.MomentumOptimizer(0.5, 0.25, True, "mine", True),
    legacy.AdagradOptimizer(0.5, 0.25, True, "mine"),
    legacy.AdadeltaOptimizer(0.5, 0.25, 0.125, True, "mine"),
    legacy.AdamOptimizer(0.5, 0.25, 0.75, 0.125, True, "mine"),
    legacy.RMSPropOptimizer(0.5, 0.25, 0.75, 0.125, True, True, "mine"),
    legacy.FtrlOptimizer(0.5, -0.25, 0.75, 0.125, 0.375, True, "mine", "a", "l", 0.625, 0.875),
]


@pytest.mark.parametrize("opt", FULL, ids=lambda o: type(o).__name__)
def test_there_and_back(opt):
    config = opt.get_config()
    assert sorted(config) == sorted(inspect.signature(type(opt)).parameters)
    assert config["name"] == opt.get_name() == opt.name == "mine" and config["use_locking"] is True
    twin = type(opt).from_config(json.loads(json.dumps(config)))
    assert type(twin) is type(opt) and twin.get_config() == config
    gradients = make_gradients(5)
    assert_same(train(twin, make_variables(), gradients), train(opt, make_variables(), gradients))


def test_each_argument_is_in_the_config_under_its_name():
    assert FULL[-1].get_config() == {
        "learning_rate": 0.5,
        "learning_rate_power": -0.25,
        "initial_accumulator_value": 0.75,
        "l1_regularization_strength": 0.125,
        "l2_regularization_strength": 0.375,
        "use_locking": True,
        "name": "mine",
        "accum_name": "a",
        "linear_name": "l",
        "l2_shrinkage_regularization_strength": 0.625,
        "beta": 0.875,
    }
    rmsprop = {"decay": 0.25, "momentum": 0.75, "epsilon": 0.125, "centered": True}
    assert FULL[-2].get_config() == rmsprop | {"learning_rate": 0.5, "use_locking": True, "name": "mine"}


def test_rates_that_are_schedules_and_callables():
    halving = legacy.MomentumOptimizer(schedules.ExponentialDecay(0.5, 1, 0.5), 0.5)
    rates = iter([0.5, 0.25, 0.125, 0.0625])
    called = legacy.MomentumOptimizer(lambda: next(rates), 0.5)
    gradients = make_gradients(3)
    assert_close(train(halving, make_variables(), gradients), train(called, make_variables(), gradients))


# Errors


@by_name
def test_no_variables(cls):
    opt = make(cls)
    with pytest.raises(ValueError, match=r"^No variables provided\.$"):
        opt.apply_gradients(iter([]))
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        opt.apply_gradients([(None, Variable(1.0))])
    with pytest.raises(TypeError, match="pairs"):
        opt.apply_gradients([(1.0,)])
    assert int(opt.iterations) == 0


@by_name
@pytest.mark.parametrize("keyword", ["clipnorm", "decay_rate", "dialect", "gradient_aggregator"])
def test_keras_keywords_are_not_taken(cls, keyword):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{keyword}'"):
        make(cls, **{keyword: None})


@pytest.mark.parametrize("name", ["", None])
def test_a_name_there_must_be(name):
    with pytest.raises(ValueError, match="Must specify the optimizer name"):
        legacy.GradientDescentOptimizer(0.5, name=name)


@pytest.mark.parametrize(
    "cls, argument, x",
    [
        *((cls, "learning_rate", -1.0) for cls in CLASSES),
        (legacy.MomentumOptimizer, "momentum", 1.5),
        (legacy.AdagradOptimizer, "initial_accumulator_value", 0.0),
        (legacy.AdadeltaOptimizer, "rho", 1.0),
        (legacy.AdadeltaOptimizer, "epsilon", 0.0),
        (legacy.AdamOptimizer, "beta1", 1.0),
        (legacy.AdamOptimizer, "beta2", -0.1),
        (legacy.AdamOptimizer, "epsilon", -1e-8),
        (legacy.RMSPropOptimizer, "decay", 1.0),
        (legacy.RMSPropOptimizer, "momentum", -0.5),
        (legacy.RMSPropOptimizer, "epsilon", -1.0),
        (legacy.FtrlOptimizer, "learning_rate_power", 0.5),
        (legacy.FtrlOptimizer, "initial_accumulator_value", -0.1),
        (legacy.FtrlOptimizer, "l1_regularization_strength", -0.1),
        (legacy.FtrlOptimizer, "l2_regularization_strength", -0.1),
        (legacy.FtrlOptimizer, "l2_shrinkage_regularization_strength", -0.1),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else str(x),
)
def test_out_of_range(cls, argument, x):
    with pytest.raises(ValueError, match=argument):
        make(cls, **{argument: x})


def test_an_epsilon_of_0_is_0():
    v = Variable([1.0])
    legacy.AdamOptimizer(0.5, epsilon=0).apply_gradients([([1e-12], v)])
    assert_close(v.numpy(), np.float32([0.5]))
    with pytest.raises(TypeError, match="epsilon must be a number"):
        legacy.AdamOptimizer(epsilon=None)
