"""LossScaleOptimizer and MultiOptimizer: optimizers around others, alone and one in the other."""

import copy
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt.keras import IndexedSlices, Variable
from functional_opt.keras.optimizers import (
    SGD,
    Adagrad,
    Adam,
    LossScaleOptimizer,
    MultiOptimizer,
    Optimizer,
    OptimizerMap,
    deserialize,
    serialize,
)

from .helpers import BIAS, KERNEL, assert_close, assert_same, make_gradients, make_variables, no_compilation, snapshot
from .test_goldens import GOLDENS, VARIABLES
from .test_goldens3 import DATA

CASES = [c for c in json.loads((GOLDENS / "keras3.json").read_text()) if c["cls"] in ("LossScale", "Multi")]
ONES = [np.ones(3, np.float32), np.ones(1, np.float32)]


def of_case(config):
    """The optimizer of a recorded config, of which all inner ones speak Keras 3."""
    if "class_name" in config and config["class_name"] != "OptimizerMap":
        return {**config, "config": config["config"] | {"dialect": "keras3"}}
    return {k: of_case(x) if isinstance(x, dict) else x for k, x in config.items()}


def by_apply(opt, variables):
    return lambda grads: opt.apply(grads, variables)


def by_stateless_apply(opt, variables):
    opt.build(variables)
    pure = jax.jit(opt.stateless_apply)

    def step(grads):
        new = pure([w.value for w in opt.variables], grads, [v.value for v in variables])
        for v, x in zip([*variables, *opt.variables], [*new[0], *new[1]], strict=True):
            v.assign(x)

    return step


def by_train_step(opt, variables):
    def loss(grads):
        # the step scales the loss, and the recorded gradients are those of a scaled one
        return sum(jnp.sum(g * v.value) for g, v in zip(grads, variables, strict=True)) / opt.scale_loss(1.0)

    return opt.make_train_step(loss, variables)


ways = pytest.mark.parametrize("way", [by_apply, by_stateless_apply, by_train_step])


@ways
@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"].removeprefix("keras3/"))
def test_keras3(case, way):
    cls = MultiOptimizer if case["cls"] == "Multi" else LossScaleOptimizer
    opt = cls.from_config(of_case(case["config"]))
    variables = [Variable(DATA[f"in/float32/init/{n}"], name=n) for n in VARIABLES]
    step = way(opt, variables)
    for i in range(10):
        grads = [DATA[f"in/float32/grad/{n}"][i] for n in VARIABLES]
        if i == case["extra"].get("inf"):
            grads[0] = np.full_like(grads[0], np.inf)
        step(grads)
        ours = {f"var/{v.path}": v.numpy() for v in variables}
        ours |= {f"weights/{k}": w.numpy() for k, w in enumerate(opt.variables)}
        for key, x in ours.items():
            np.testing.assert_allclose(x, DATA[f"{case['id']}/{key}"][i], rtol=2e-4, atol=6e-6, err_msg=key)
        assert opt.iterations == DATA[f"{case['id']}/iterations"][i]
    assert [w.path for w in opt.variables] == case["weight_names"]


# All of them


def scaled(inner=None, scale=4.0, **kwargs):
    return LossScaleOptimizer(inner or Adam(0.125), scale, **kwargs)


def multi(**kwargs):
    return MultiOptimizer(OptimizerMap(SGD(0.125, 0.5), {".*/kernel": Adam(0.125)}), **kwargs)


WRAPPERS = {"scaled": scaled, "multi": multi, "scaled multi": lambda: scaled(multi())}
wrappers = pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS)


def loss(variables):
    return sum(jnp.sum(jnp.sin(v.value)) for v in variables)


def factor(opt):
    """What gradients that are given to it are multiplied by."""
    return opt.scale_loss(np.float32(1.0))


def step_by(opt, variables, grads):
    opt.apply([factor(opt) * g for g in grads], variables)


@wrappers
def test_every_way_to_train(make):
    (variables, twins), opt = (make_variables(), make_variables()), make()
    by_hand = (Adam(0.125), Adam(0.125) if make is scaled else SGD(0.125, 0.5))  # one for each variable
    step = opt.make_train_step(lambda: loss(variables))
    for train in (
        lambda: opt.minimize(lambda: loss(variables)),
        lambda: opt.apply_gradients(opt.compute_gradients(lambda: loss(variables), variables)),
        lambda: step_by(opt, variables, [np.cos(v.numpy()) for v in variables]),
        step,
        step,
        lambda: opt.minimize(lambda: loss(variables), variables),
    ):
        train()
        for inner, v in zip(by_hand, twins, strict=True):
            inner.apply([np.cos(v.numpy())], [v])
        assert_close([v.numpy() for v in variables], [v.numpy() for v in twins])
    assert opt.iterations == 6


@wrappers
@pytest.mark.parametrize("short", [False, True])
def test_configs_go_to_json_and_back(make, short):
    opt = make()
    config = json.loads(json.dumps(serialize(opt)))
    assert set(config) == {"module", "class_name", "config", "registered_name"}
    twin = deserialize({k: config[k] for k in ("class_name", "config")} if short else config)
    assert type(twin) is type(opt) and twin.get_config() == opt.get_config()
    assert_same(*[(step_by(o, vs := make_variables(), ONES), snapshot(o, vs))[1] for o in (opt, twin)])


@wrappers
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_keep_their_state(make, copied):
    variables, (first, second, third), opt = make_variables(), make_gradients(3), make()
    step_by(opt, variables, first)
    twin, kept, values = copied(opt), opt.get_weights(), [v.numpy() for v in variables]
    assert_same(twin.get_weights(), kept)
    after = []
    for each in (twin, opt):
        assert_same(opt.get_weights(), kept)  # the twin's state is its own
        for v, x in zip(variables, values, strict=True):
            v.assign(x)
        step_by(each, variables, second)
        step_by(each, variables, third)
        after.append(snapshot(each, variables))
    assert_same(*after)


@wrappers
def test_weights_set_before_the_first_step(make):
    (variables, twins), (opt, twin) = (make_variables(), make_variables()), (make(), make())
    first, second = make_gradients(2)
    step_by(opt, variables, first)
    twin.set_weights(opt.get_weights())
    for v, x in zip(twins, variables, strict=True):
        v.assign(x)
    for o, vs in ((opt, variables), (twin, twins)):
        step_by(o, vs, second)
    assert_same(snapshot(twin, twins), snapshot(opt, variables))


@wrappers
def test_weights_set_later(make):
    variables, opt, store = make_variables(), make(), {}
    opt.build(variables)
    at_first = opt.get_weights()
    opt.save_own_variables(store)
    step_by(opt, variables, ONES)
    after = opt.get_weights()
    for wrong in (after[:-1], [*after[:-1], np.ones(7)]):
        with pytest.raises(ValueError, match="the optimizer was expecting|it cannot be set to"):
            opt.set_weights(wrong)
    assert_same(opt.get_weights(), after)
    opt.load_own_variables(store)
    assert_same(opt.get_weights(), at_first)
    opt.set_weights(after)
    assert_same(opt.get_weights(), after)
    with pytest.raises(RuntimeError, match="Cannot set `iterations` to a new Variable"):
        opt.iterations = Variable(0)


def test_slots():
    (kernel, bias), opt = make_variables(), scaled(multi())
    assert opt.get_slot_names() == []
    opt.build([kernel, bias])
    assert opt.get_slot_names() == ["m", "v", "momentum"]
    opt.apply([4 * g for g in ONES], [kernel, bias])
    np.testing.assert_allclose(opt.get_slot(kernel, "m").value, 0.1, rtol=1e-6)
    np.testing.assert_allclose(opt.get_slot(bias, "momentum").value, -0.125)
    opt.get_slot(bias, "momentum").assign([0.0])
    opt.apply([None, np.zeros(1)], [kernel, bias])
    np.testing.assert_allclose(bias.value, BIAS - 0.125)
    for v, name in ((kernel, "momentum"), (bias, "m"), (Variable(1.0), "m")):
        with pytest.raises(KeyError):
            opt.get_slot(v, name)


@pytest.mark.parametrize("wrap", [scaled, lambda opt: MultiOptimizer(lambda v: opt)])
@pytest.mark.parametrize("inner", [lambda: Adagrad(0.1), lambda: Adam(0.1), lambda: SGD(0.1, global_clipnorm=0.5)])
def test_sparse_gradients(wrap, inner):
    (table, twin), opt, other = (Variable(KERNEL[:, None], name="t") for _ in range(2)), wrap(inner()), inner()
    slices = IndexedSlices(np.float32([[1.0], [2.0], [3.0]]), [0, 2, 0])
    opt.apply([slices.with_values(slices.values * factor(opt))], [table])
    other.apply([slices], [twin])
    opt.minimize(lambda: jnp.sum(table.sparse_read([1, 1])))
    other.minimize(lambda: jnp.sum(twin.sparse_read([1, 1])))
    assert_close(table.numpy(), twin.numpy())


@wrappers
def test_a_step_that_fails_changes_nothing(make):
    variables, opt = make_variables(), make()
    step_by(opt, variables, ONES)
    before = snapshot(opt, variables)
    for grads in ([np.ones(3), np.ones(2)], [None, None], [np.ones(3), np.ones(1, int)]):
        with pytest.raises((ValueError, TypeError)):
            opt.apply(grads, variables)
        assert_same(snapshot(opt, variables), before)
    with pytest.raises(TypeError, match="has no transformation of its own; use those of its inner optimizers"):
        opt.transform(None)


@wrappers
def test_numbers_can_be_reassigned_without_compiling(make):
    variables, opt = make_variables(), make()
    step_by(opt, variables, ONES)
    inner = opt.inner_optimizer if isinstance(opt, LossScaleOptimizer) else opt
    with no_compilation():
        for part in inner.optimizers if isinstance(inner, MultiOptimizer) else [inner]:
            part.learning_rate = 0.0
        before = [v.numpy() for v in variables]
        step_by(opt, variables, [g * 0 for g in ONES])
    if make is scaled:
        assert_same([v.numpy() for v in variables], before)
        opt.learning_rate = 0.5
        assert opt.current_learning_rate() == opt.learning_rate == inner.learning_rate == 0.5


# LossScaleOptimizer


@pytest.mark.parametrize("way", ["apply", "minimize", "make_train_step"])
def test_a_gradient_that_is_not_finite(way):
    (kernel, bias), bad = make_variables(), Variable(1.0, trainable=False, name="bad")
    opt = scaled(SGD(0.125, 0.5), dynamic_growth_steps=2)
    fn = lambda: jnp.sum(kernel.value) + bad.value * jnp.sum(bias.value)  # noqa: E731
    steps = {
        "apply": lambda: opt.apply([factor(opt) * x for x in (ONES[0], bad.value * ONES[1])], [kernel, bias]),
        "minimize": lambda: opt.minimize(fn),
        "make_train_step": opt.make_train_step(fn),
    }
    scales = []
    for x in (1.0, np.nan, 1.0, np.inf, -np.inf, 1.0, 1.0, 1.0, 1.0):
        bad.assign(x)
        slots = [opt.get_slot(v, "momentum").numpy() for v in (kernel, bias)] if scales else None
        before = snapshot(opt, (kernel, bias))[0], int(opt.iterations)
        steps[way]()
        scales.append(float(opt.dynamic_scale))
        if not np.isfinite(x):
            assert_same((snapshot(opt, (kernel, bias))[0], int(opt.iterations)), before)
            assert_same([opt.get_slot(v, "momentum").numpy() for v in (kernel, bias)], slots)
    assert scales == [4.0, 2.0, 2.0, 1.0, 0.5, 0.5, 1.0, 1.0, 2.0]
    assert opt.iterations == 6 and opt.step_counter == 0


def test_functions_of_the_inner_optimizer_see_gradients_of_the_loss_itself():
    (kernel, _), seen = make_variables(), []
    note = lambda gv: (seen.append(gv[0][0]), gv)[1]  # noqa: E731
    inner = SGD(0.125, gradient_aggregator=note, gradient_transformers=[note, lambda gv: [(2 * g, v) for g, v in gv]])
    opt = scaled(inner)
    opt.minimize(lambda: jnp.sum(kernel.value), [kernel])
    np.testing.assert_array_equal(seen, np.ones((2, 3)))
    opt.make_train_step(lambda: jnp.sum(kernel.value), [kernel])()
    np.testing.assert_allclose(kernel.value, KERNEL - 0.5)


def test_functions_of_its_own_see_those_of_the_scaled_loss():
    (kernel, _), seen = make_variables(), []
    opt = scaled(SGD(0.125), gradient_transformers=[lambda gv: (seen.append(gv[0][0]), gv)[1]])
    opt.minimize(lambda: jnp.sum(kernel.value), [kernel])
    np.testing.assert_array_equal(seen, np.full((1, 3), 4.0))


def test_clipping_and_decay_are_of_the_loss_itself():
    (kernel, bias), opt = make_variables(), scaled(SGD(0.5, clipvalue=0.5, weight_decay=0.5), scale=2.0**15)
    opt.exclude_from_weight_decay(var_names=["bias"])
    opt.minimize(lambda: jnp.sum(kernel.value) + 0.25 * jnp.sum(bias.value))
    assert_close([kernel.numpy(), bias.numpy()], [0.75 * KERNEL - 0.25, BIAS - 0.125])


def test_float16_gradients_that_would_vanish():
    v, tiny = Variable(np.float16([1.0]), name="v"), Variable(np.float16([2.0**-14]), trainable=False, name="tiny")
    opt, fn = LossScaleOptimizer(SGD(2.0**20)), lambda: jnp.sum(v.value * tiny.value * tiny.value)
    for step in (lambda: opt.minimize(fn), opt.make_train_step(fn)):
        before = float(v[0])
        step()
        assert before - float(v[0]) == 2.0**-8


def test_running_means_of_the_inner_optimizer():
    (kernel, _), opt = make_variables(), scaled(SGD(0.5, use_ema=True, ema_momentum=0.5))
    for _ in range(2):
        opt.minimize(lambda: jnp.sum(kernel.value), [kernel])
    opt.finalize_variable_values([kernel])
    np.testing.assert_allclose(kernel.value, KERNEL - 0.75)


WRONG = [
    (lambda: scaled(3.0), TypeError, "inner_optimizer must be an Optimizer, got 3.0"),
    (lambda: LossScaleOptimizer("adam"), TypeError, "inner_optimizer must be an Optimizer"),
    (lambda: scaled(clipnorm=1.0), ValueError, "does not support `clipnorm`. Set it on the `inner_optimizer`"),
    (lambda: scaled(scale=0.0), ValueError, r"initial_scale must be in \(0, inf\), got 0.0"),
    (lambda: scaled(dynamic_growth_steps=0), ValueError, r"dynamic_growth_steps must be in \[1, 2147483647\], got 0"),
    (lambda: scaled(nonsense=1), TypeError, "Unexpected keyword argument passed to optimizer: nonsense"),
    (lambda: MultiOptimizer({"a": SGD()}), TypeError, "optimizer_map must be an OptimizerMap or a function"),
    (lambda: MultiOptimizer(lambda v: "sgd").build([Variable(1.0)]), TypeError, "the optimizer of Variable must be"),
    (lambda: OptimizerMap("sgd"), TypeError, "default_optimizer must be an Optimizer, got 'sgd'"),
    (lambda: OptimizerMap(SGD(), [("a", SGD())]), TypeError, "optimizer_map must be a dictionary"),
    (lambda: OptimizerMap(SGD(), {"a": "sgd"}), TypeError, "the optimizer of 'a' must be an Optimizer"),
    (lambda: multi().learning_rate, AttributeError, "Learning rate cannot be accessed on a MultiOptimizer"),
    (lambda: multi().lr, AttributeError, "Learning rate cannot be accessed"),
    (lambda: multi().nonsense, AttributeError, "nonsense"),
    (lambda: MultiOptimizer(lambda v: SGD()).get_config(), NotImplementedError, "only if it was made from an Opt"),
]


@pytest.mark.parametrize(("fn", "error", "message"), WRONG)
def test_wrong_arguments(fn, error, message):
    with pytest.raises(error, match=message):
        fn()


# MultiOptimizer


def test_an_optimizer_map():
    sgd, adam = SGD(), Adam()
    optimizers = OptimizerMap(sgd, {"a/.*": adam})
    assert optimizers["a/kernel"] is adam and optimizers["b/a/kernel"] is sgd and optimizers["a"] is sgd
    assert optimizers(Variable(1.0, name="a/bias")) is adam
    with pytest.raises(ValueError, match="already exists in the OptimizerMap; delete it first"):
        optimizers["a/.*"] = sgd
    optimizers[".*/kernel"] = adam
    with pytest.raises(
        ValueError, match=r"Multiple optimizers assigned to variable a/kernel: \['a/\.\*', '\.\*/kernel"
    ):
        optimizers["a/kernel"]
    assert list(optimizers) == ["a/.*", ".*/kernel"] and len(optimizers) == 2
    assert optimizers.optimizers() == [adam, sgd]
    del optimizers["a/.*"]
    assert optimizers["a/bias"] is sgd
    with pytest.raises(ValueError, match="Multiple optimizers"):
        MultiOptimizer(OptimizerMap(sgd, {".": adam, "[v]": adam})).build([Variable(1.0, name="v")])


def test_a_function_that_selects():
    (kernel, bias), asked = make_variables(), []
    by_size = {3: Adam(0.125), 1: SGD(0.125, 0.5)}
    opt = MultiOptimizer(lambda v: (asked.append(v), by_size[v.size])[1])
    assert opt.optimizers == []
    for grads in make_gradients(3):
        opt.apply(grads, [kernel, bias])
    assert opt.optimizers == [by_size[3], by_size[1]]
    assert [v.path for v in asked] == ["dense/kernel", "dense/bias"]
    late = Variable(KERNEL, name="late")
    opt.apply([np.ones(3)], [late])
    assert [int(o.iterations) for o in (opt, *opt.optimizers)] == [4, 4, 3]
    np.testing.assert_allclose(opt.get_slot(late, "m").value, 0.1, rtol=1e-6)


@pytest.mark.parametrize("of", [lambda o: lambda v: o, OptimizerMap], ids=["function", "map"])
def test_weights_that_do_not_decay(of):
    (kernel, bias), other = make_variables(), Variable(KERNEL, name="other")
    opt = MultiOptimizer(of(SGD(0.5, weight_decay=0.5)))
    opt.exclude_from_weight_decay([kernel], ["other"])
    opt.apply([0 * KERNEL, 0 * BIAS, 0 * KERNEL], [kernel, bias, other])
    assert_close([v.numpy() for v in (kernel, bias, other)], [KERNEL, 0.75 * BIAS, KERNEL])


@pytest.mark.parametrize("way", ["minimize", "make_train_step"])
def test_an_optimizer_without_gradients_does_not_move(way):
    (kernel, bias), opt = make_variables(), multi()
    opt.apply(ONES, [kernel, bias])
    adam, sgd = opt.optimizers
    before = sgd.get_weights(), bias.numpy()
    fn = lambda: jnp.sum(kernel.value)  # noqa: E731
    opt.minimize(fn, [kernel, bias]) if way == "minimize" else opt.make_train_step(fn, [kernel, bias])()
    assert_same((sgd.get_weights(), bias.numpy()), before)
    assert [int(o.iterations) for o in (opt, adam, sgd)] == [2, 2, 1]


def test_loss_scale_factor():
    (variables, twins), (opt, other) = (make_variables(), make_variables()), (multi(loss_scale_factor=8.0), multi())
    step, on_other = (o.make_train_step(lambda v=v: loss(v), v) for o, v in ((opt, variables), (other, twins)))
    assert opt.scale_loss(2.0) == 16.0
    opt.minimize(lambda: loss(variables), variables)
    other.minimize(lambda: loss(twins), twins)
    step(), on_other()
    assert_close(snapshot(opt, variables), snapshot(other, twins))
    opt.loss_scale_factor = 2.0
    opt.apply([2 * g for g in ONES], variables)
    other.apply(ONES, twins)
    assert_close(snapshot(opt, variables), snapshot(other, twins))


def test_optimizers_of_ones_own_inside():
    class Mine(Optimizer):
        def __init__(self):
            super().__init__("mine", learning_rate=0.5)

        def update_step(self, gradient, variable, learning_rate):
            variable.assign_sub(learning_rate * gradient)

    (kernel, bias), opt = make_variables(), scaled(MultiOptimizer(OptimizerMap(Mine(), {".*bias": SGD(0.25)})))
    opt.minimize(lambda: jnp.sum(kernel.value) + jnp.sum(bias.value))
    assert_close([kernel.numpy(), bias.numpy()], [KERNEL - 0.5, BIAS - 0.25])


def test_names_of_tf_keras():
    v = Variable(jnp.ones(2), name="v")
    opt = LossScaleOptimizer(SGD(0.1), dynamic=True, initial_scale=4.0)
    opt.apply_gradients([(jnp.ones(2), v)])
    assert (float(opt.loss_scale), int(opt.dynamic_counter)) == (4.0, 1)
    opt.apply_gradients([(jnp.full(2, jnp.inf), v)])
    assert (float(opt.loss_scale), int(opt.dynamic_counter)) == (2.0, 0)
    with pytest.raises(ValueError, match="dynamic must be True. For a fixed one .* loss_scale_factor"):
        LossScaleOptimizer(SGD(0.1), dynamic=False, initial_scale=4.0)
