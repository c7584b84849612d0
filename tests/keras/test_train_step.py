"""make_train_step: the trajectory of minimize in one program, whatever the loss reads, assigns and returns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from functional_opt.keras import Variable, function
from functional_opt.keras.optimizers import SGD, Adam, LossScaleOptimizer, MultiOptimizer, RMSprop, schedules

from ..helpers import compiled
from .helpers import BIAS, KERNEL, assert_close, assert_same, make_variables, no_compilation, snapshot

BATCHES = [(x.astype(np.float32), y.astype(np.float32)) for x, y in np.random.default_rng(2).normal(size=(6, 2, 3))]


def regression(kernel, bias):
    return lambda x, y: jnp.mean((x * jnp.tanh(kernel) + bias - y) ** 2)


OPTIMIZERS = [
    (lambda: SGD(0.1, momentum=0.9, global_clipnorm=0.5), lambda x: jnp.clip(x, -0.5, 2.0)),
    (lambda: RMSprop(schedules.ExponentialDecay(0.1, 2, 0.5), decay=0.1), None),
    (lambda: Adam(lambda: 0.1, gradient_transformers=[lambda gv: [(g + 0.5 * v, v) for g, v in gv]]), None),
    (lambda: Adam(0.1, amsgrad=True, gradient_aggregator=lambda gv: [(2 * g, v) for g, v in gv]), jnp.abs),
]


@pytest.mark.parametrize(("make", "constraint"), OPTIMIZERS)
def test_same_trajectory_as_minimize(make, constraint):
    (opt, variables), (other, twins) = [(make(), make_variables(constraint=constraint)) for _ in range(2)]
    step, loss = opt.make_train_step(regression(*variables)), regression(*twins)
    for batch in BATCHES[:4]:
        expected = loss(*batch)
        np.testing.assert_allclose(step(*batch), expected, rtol=1e-5)
        other.minimize(lambda batch=batch: loss(*batch))
        assert_close(snapshot(opt, variables), snapshot(other, twins))
    step(*BATCHES[4])
    opt.minimize(lambda: regression(*variables)(*BATCHES[5]), variables)  # both ways, one state
    assert int(opt.iterations) == 6


def test_other_variables_are_read_and_assigned():
    kernel, bias = make_variables()
    mean, n = Variable(0.0, trainable=False, name="mean"), Variable(0, trainable=False, name="n")
    scale = Variable(2.0, trainable=False, name="scale")
    traces = []

    def loss(x):
        traces.append(0)
        n.assign_add(1)
        mean.assign(mean + (jnp.mean(x) - mean) / n)
        return scale * jnp.sum(kernel * (x - mean))

    step = SGD(1.0).make_train_step(loss)
    with jax.checking_leaks():
        for x in (1.0, 2.0, 6.0):
            step(np.float32([x, x, x]))
    assert (float(mean), int(n)) == (3.0, 3)
    np.testing.assert_allclose(kernel.value, KERNEL - 2.0 * ((1 - 1) + (2 - 1.5) + (6 - 3)))
    scale.assign(0.0)
    mean.assign(7.0)  # and new values are seen
    before = kernel.numpy()
    step(np.float32([7.0, 7.0, 7.0]))
    assert float(mean) == 7.0
    assert_same([kernel.numpy(), bias.numpy()], [before, BIAS])
    assert len(traces) == 2  # one to see what it reads, one to compile


def test_assigning_to_what_is_trained():
    (kernel, _), opt = make_variables(), SGD(1.0)

    def loss():
        kernel.assign(kernel / 2)
        return jnp.sum(kernel)

    with pytest.raises(ValueError, match=r"the loss assigns to \['dense/kernel:0'\], which are being trained"):
        opt.make_train_step(loss)()
    assert_same([kernel.numpy()], [KERNEL])


def test_the_optimizer_itself_can_be_read():
    v, opt = Variable(1.0, name="v"), Adam(0.5)
    opt.build([v])
    seen = []

    def loss():
        seen.append((opt.iterations.value, opt.learning_rate.value, opt.get_slot(v, "m").value))
        return v * (1 + seen[-1][0]) * opt.learning_rate

    step = opt.make_train_step(lambda: (loss(), seen[-1]), has_aux=True)
    for i in range(3):
        opt.learning_rate = 0.5 / (1 + i)
        out, (iterations, rate, m) = step()
        assert (int(iterations), float(rate)) == pytest.approx((i, 0.5 / (1 + i)))
        assert float(m) == pytest.approx([0.0, 0.05, 0.095][i])


def test_has_aux():
    (kernel, _), mean = make_variables(), Variable(0.0, trainable=False, name="mean")

    def loss(x):
        mean.assign_add(jnp.sum(x))
        return jnp.sum(kernel * x), {"x": x, "kernel": kernel, "mean": mean, "none": None}

    step = SGD(1.0).make_train_step(loss, has_aux=True)
    step(np.ones(3, np.float32))
    out, aux = step(np.float32([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(out, np.sum((KERNEL - 1) * [1, 2, 3]), rtol=1e-6)
    # a variable is returned as it was when the loss returned
    assert_close([aux["kernel"].value, aux["mean"].value, aux["x"]], [KERNEL - 1, 9.0, np.float32([1, 2, 3])])
    assert aux["none"] is None


def test_var_list(caplog):
    a, b, c = (Variable(1.0, name=n) for n in "abc")
    for var_list in ([a, c], lambda: (a, c)):
        opt = Adam(0.5)
        step = opt.make_train_step(lambda x: x * a * b, var_list)
        before = float(a)
        step(1.0)
        step(1.0)
        np.testing.assert_allclose(a.value, before - 1.0, atol=1e-5)
        assert (float(b), float(c)) == (1.0, 1.0)
        assert "['c:0']" in caplog.text
        for v in (b, c):  # one is not trained, the other has no gradient
            with pytest.raises(KeyError):
                opt.get_slot(v, "v")
    for var_list in ([], lambda: []):
        with pytest.raises(ValueError, match="No variables to minimize"):
            Adam().make_train_step(lambda x: a * x, var_list)(1.0)
    with pytest.raises(ValueError, match="var_list must hold variables"):
        Adam().make_train_step(lambda x: a * x, [a.value])(1.0)
    with pytest.raises(ValueError, match=r"No gradients provided for any variable: \['c:0'\]"):
        Adam().make_train_step(lambda x: a * x, [c])(1.0)


def test_what_is_read_may_depend_on_the_batch():
    kernel, bias = make_variables()
    opt, compiled = SGD(1.0), []
    opt.build([kernel, bias])

    def loss(batch):
        compiled.append(0)
        return jnp.sum(batch["x"]) * jnp.sum(kernel) + (jnp.sum(bias) if "bias" in batch else 0.0)

    step = opt.make_train_step(loss)
    plain, with_bias = {"x": np.float32([1.0])}, {"x": np.float32([1.0]), "bias": True}
    longer = {"x": np.float32([1.0, 1.0])}
    for _ in range(2):
        for batch in (plain, with_bias, longer):
            step(batch)
    assert len(compiled) == 2 * 3
    assert_close([kernel.value, bias.value], [KERNEL - 2 * (1 + 1 + 2), BIAS - 2])
    assert int(opt.iterations) == 6


def test_a_new_learning_rate_compiles_nothing():
    v, traces = Variable(0.0, name="v"), []
    opt = SGD(0.5, momentum=0.0)
    step = opt.make_train_step(lambda x: (traces.append(0), x * v)[1])
    for rate in (0.5, 1, np.float32(0.25), Variable(0.5), lambda: 0.5):
        opt.learning_rate, before = rate, float(v)
        step(np.float32(1.0))
        assert before - float(v) == float(opt._get_hyper("learning_rate"))
    opt.iterations.assign(100)
    v.assign(1.0)
    step(np.float32(1.0))
    assert len(traces) == 2
    opt.learning_rate = schedules.ExponentialDecay(0.5, 1, 1.0)  # another kind: once more
    step(np.float32(1.0))
    step(np.float32(1.0))
    assert len(traces) == 3
    with no_compilation():
        step(np.float32(1.0))


def test_batches_of_all_kinds():
    v = Variable(0.0, name="v")
    step = SGD(1.0).make_train_step(
        lambda *args, scale=2.0: scale * v * sum(jnp.sum(x) for x in jax.tree.leaves(args))
    )
    step()  # no batch at all
    for batch in ([2.0], [np.ones(2)], [{"a": (1, True)}], [jnp.ones(2), None], [Variable([2.0, 0.0])]):
        before = float(v)
        step(*batch)
        assert before - float(v) == 4.0


def test_integers_and_16_bits(caplog):
    v, n = Variable(1.0, name="v", dtype="bfloat16"), Variable(3, name="n")
    opt = Adam(0.5)
    step = opt.make_train_step(lambda: (n * v).astype(jnp.float32))
    step()
    step()
    assert (float(v), v.dtype, int(n)) == (0.0, jnp.bfloat16, 3)
    assert "'n:0'" in caplog.text


def test_transformers_may_read_any_variable():
    v, scale = Variable(0.0, name="v"), Variable(2.0, trainable=False, name="scale")
    opt = SGD(1.0, gradient_transformers=[lambda gv: [(g / scale, v) for g, v in gv]])
    step = opt.make_train_step(lambda: v * 1.0)
    step()
    scale.assign(0.5)
    step()
    assert v.value == -0.5 - 2.0


def test_a_variable_made_in_the_loss():
    made = []

    def loss():
        if not made:
            made.append(Variable([1.0], name="late"))
        return jnp.sum(made[0] ** 2)

    step = SGD(0.25).make_train_step(loss)
    assert [float(step()) for _ in range(3)] == [1.0, 0.25, 0.0625]
    assert made[0].value.tolist() == [0.125]


def test_a_variable_made_of_traced_values_is_made_at_the_first_call_only():
    made = []

    def loss(x):
        if not made:
            made.append(Variable(2 * x, name="late"))
        return jnp.sum(made[0] ** 2)

    step = SGD(0.25).make_train_step(loss)
    assert [float(step(np.ones(1))) for _ in range(3)] == [4.0, 1.0, 0.25]
    with pytest.raises(RuntimeError, match="makes variables of computed values at every call"):
        always = function(lambda x: Variable(2 * x).value)
        for _ in range(2):
            always(np.ones(1))


def test_two_steps_of_one_optimizer_and_late_variables():
    (kernel, bias), opt = make_variables(), Adam(0.5, epsilon=1e-20)
    first = opt.make_train_step(lambda: jnp.sum(kernel))
    second = opt.make_train_step(lambda: jnp.sum(kernel) + jnp.sum(bias))
    first()
    second()
    first()
    np.testing.assert_allclose(kernel.value, KERNEL - 1.5, rtol=1e-5)
    np.testing.assert_allclose(bias.value, BIAS - 0.5 * (0.1 / 0.19) / (0.001 / (1 - 0.999**2)) ** 0.5, rtol=1e-4)
    assert int(opt.iterations) == 3


def by_name(optimizers, variable):
    return optimizers[variable.name.split(":")[0]]


MAKERS = {
    "Adam": lambda: Adam(1e-2),
    "LossScaleOptimizer": lambda: LossScaleOptimizer(Adam(1e-2)),
    "MultiOptimizer": lambda: MultiOptimizer(
        functools.partial(by_name, {"w": SGD(1e-2, momentum=0.9), "b": Adam(1e-2)})
    ),
    "averages and accumulates": lambda: Adam(1e-2, use_ema=True, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("name", MAKERS)
def test_slots_in_pieces(name):
    mesh, runs = jax.make_mesh((4,), ("data",)), []
    for more in ({}, {"mesh": mesh, "shard": "data"}):
        rng = np.random.default_rng(0)
        w, b = Variable(rng.normal(size=(64, 32)), "float32", name="w"), Variable(np.zeros(32, "float32"), name="b")
        steps = Variable(0.0, name="steps", trainable=False)

        def loss(x, y, w=w, b=b, steps=steps):
            steps.assign_add(1.0)
            return jnp.mean((x @ w.value + b.value - y) ** 2)

        opt = MAKERS[name]()
        step, before = opt.make_train_step(loss, **more), len(compiled)
        for x, y in zip(rng.normal(size=(4, 16, 64)), rng.normal(size=(4, 16, 32)), strict=True):
            value = step(x.astype("float32"), y.astype("float32"))
        runs.append((value, np.asarray(w), np.asarray(b), [np.asarray(x) for x in opt.variables]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), *runs)
    assert float(steps) == 4 and w.value.sharding.is_fully_replicated
    slots = [v.value for v in opt.variables if v.shape == (64, 32)]
    assert slots and all(x.sharding.spec == PartitionSpec("data") for x in slots)
    assert sum("program" in name for name in compiled[before:]) == 1


def test_slots_in_pieces_need_a_mesh():
    mesh, loss = jax.make_mesh((4,), ("data",)), lambda x: x.sum()
    with pytest.raises(ValueError, match="shard='data' needs mesh="):
        Adam().make_train_step(loss, shard="data")
    with pytest.raises(ValueError, match="without axis_name, got 'data'"):
        Adam(axis_name="data").make_train_step(loss, mesh=mesh, shard="data")
    with pytest.raises(ValueError, match="shard must be one of the mesh's axes, data, got 'model'"):
        Adam().make_train_step(loss, mesh=mesh, shard="model")
    v = Variable(np.ones(2, "float32"), name="v")
    step = Adam().make_train_step(lambda x: (x * v.value).sum(), mesh=mesh, shard="data")
    with pytest.raises(ValueError, match=r"shape \(3, 2\); the 4 devices of 'data' must divide its first axis"):
        step(np.ones((3, 2), "float32"))
