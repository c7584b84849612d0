"""Replicas: four devices that each see a part of the batch train as one that sees all of it."""

import enum

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from functional_opt.keras import IndexedSlices, Variable
from functional_opt.keras.optimizers import (
    SGD,
    Adagrad,
    Adam,
    LossScaleOptimizer,
    MultiOptimizer,
    Optimizer,
    OptimizerMap,
)

from .helpers import KERNEL, assert_close, make_variables, snapshot

AXIS = "replica"
MESHES = {kind: jax.make_mesh((4,), (AXIS,), axis_types=(kind,)) for kind in (AxisType.Auto, AxisType.Explicit)}
MESH = MESHES[AxisType.Auto]
BATCH, SPLIT, SAME = (
    np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32),
    PartitionSpec(AXIS),
    PartitionSpec(),
)
meshes = pytest.mark.parametrize("mesh", MESHES.values(), ids=[kind.name for kind in MESHES])


def on_replicas(fn, in_specs=SPLIT, out_specs=SPLIT, check_vma=True):
    return jax.jit(jax.shard_map(fn, mesh=MESH, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma))


# make_train_step with a mesh


def regression(kernel, bias):
    return lambda x: jnp.sum((x @ kernel.value + bias.value) ** 2)


OPTIMIZERS = {
    "momentum": lambda **axis: SGD(0.01, 0.9, **axis),
    "clipped after the sum": lambda **axis: SGD(0.1, global_clipnorm=1.0, **axis),
    "Adam": lambda **axis: Adam(0.1, weight_decay=0.1, **axis),
    "scaled": lambda **axis: SGD(0.01, loss_scale_factor=8.0, **axis),
}


@meshes
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_train_step_on_a_mesh(make, mesh):
    (variables, twins), (opt, other) = (make_variables(), make_variables()), (make(axis_name=AXIS), make())
    step, on_one = opt.make_train_step(regression(*variables), mesh=mesh), other.make_train_step(regression(*twins))
    for _ in range(2):
        losses, loss = step(BATCH), on_one(BATCH)
        assert losses.shape == (4,)
        np.testing.assert_allclose(jnp.sum(losses), loss, rtol=1e-5)
    assert_close(snapshot(opt, variables), snapshot(other, twins))


WRAPPED = {
    "outside": lambda: LossScaleOptimizer(SGD(0.01, 0.9), 8.0, axis_name=AXIS),
    "both": lambda: LossScaleOptimizer(SGD(0.01, 0.9, axis_name=AXIS), 8.0, axis_name=AXIS),
    "maps": lambda: MultiOptimizer(OptimizerMap(SGD(0.01, 0.9, axis_name=AXIS)), axis_name=AXIS),
}


@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_wrapped_optimizers_sum_once(make):
    (variables, twins), other = (make_variables(), make_variables()), SGD(0.01, 0.9)
    make().make_train_step(regression(*variables), mesh=MESH)(BATCH)
    other.make_train_step(regression(*twins))(BATCH)
    assert_close([v.numpy() for v in variables], [v.numpy() for v in twins])


def test_an_infinite_gradient_in_one_replica_stops_all():
    (kernel, bias), opt = make_variables(), WRAPPED["outside"]()
    step = opt.make_train_step(regression(kernel, bias), mesh=MESH)
    step(np.where(np.arange(24).reshape(8, 3) == 23, np.inf, BATCH))
    np.testing.assert_array_equal(kernel.value, KERNEL)
    assert opt.dynamic_scale == 4.0


def test_aux_and_arguments_that_are_not_split():
    v = Variable([1.0, 2.0, 3.0], name="v")
    loss = lambda batch, scale: (scale * jnp.sum(batch["x"] @ v.value), batch["x"][0])  # noqa: E731
    step = SGD(1.0, axis_name=AXIS).make_train_step(loss, has_aux=True, mesh=MESH)
    losses, firsts = step({"x": BATCH}, np.float32(2.0))
    assert_close(np.array(firsts), BATCH[::2])
    assert_close(v.numpy(), KERNEL * [1, -1, 1] - 2 * BATCH.sum(0))


@pytest.mark.parametrize("make", [lambda **a: SGD(0.1, 0.9, **a), lambda **a: Adagrad(0.1, **a)])
def test_rows_are_gathered(make):
    (table, twin), indices = (Variable(BATCH, name="table") for _ in range(2)), np.array([1, 1, 2, 1, 7, 0, -1, 2])
    opt, other = make(axis_name=AXIS), make()
    step = opt.make_train_step(lambda i: jnp.sum(table.sparse_read(i) ** 2), mesh=MESH)
    on_one = other.make_train_step(lambda i: jnp.sum(twin.sparse_read(i) ** 2))
    for _ in range(2):
        step(indices)
        on_one(indices)
    assert_close(snapshot(opt, [table]), snapshot(other, [twin]))
    np.testing.assert_array_equal(table.numpy()[3:7], BATCH[3:7])


def test_running_means_are_the_mean_of_those_of_the_replicas():
    mean, v = Variable(np.zeros(3), trainable=False, name="mean"), Variable(1.0, name="v")

    def loss(x):
        mean.assign(0.5 * mean + 0.5 * jnp.mean(x, axis=0))
        return v * jnp.sum(x * mean)

    step = SGD(0.0, axis_name=AXIS).make_train_step(loss, mesh=MESH)
    step(BATCH)
    step(BATCH)
    assert_close(mean.numpy(), 0.75 * BATCH.mean(axis=0))


@pytest.mark.parametrize("axis", [None, "other", ("replica", "other")])
def test_a_mesh_without_the_axis(axis):
    with pytest.raises(ValueError, match=r"mesh must have the optimizer's axis_name.*among \('replica',\)"):
        SGD(axis_name=axis).make_train_step(lambda: 0.0, mesh=MESH)


# Inside of jax.shard_map and jax.vmap


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("how", ["apart", "by itself"])
def test_stateless_apply_in_shard_map(check_vma, how):
    """Gradients may be each replica's own, or summed by shard_map already."""
    (kernel, _), opt = make_variables(), Adam(0.1, clipnorm=1.0, axis_name=AXIS)
    opt.build([kernel])
    twin = Adam(0.1, clipnorm=1.0)
    twin.apply([2 * BATCH.T @ (BATCH @ KERNEL)], [other := Variable(KERNEL, name="dense/kernel")])

    def step(weights, value, x):
        own = jax.lax.pcast(value, AXIS, to="varying") if how == "apart" and check_vma else value
        g = jax.grad(lambda value: jnp.sum((x @ value) ** 2))(own)
        return opt.stateless_apply(weights, [g], [value])

    run = on_replicas(step, (SAME, SAME, SPLIT), SAME, check_vma)
    (value,), weights = run([w.value for w in opt.variables], kernel.value, BATCH)
    assert_close([value, weights], [other.value, [w.value for w in twin.variables]])
    np.testing.assert_array_equal(kernel.value, KERNEL)  # and nothing else


GRADIENTS = np.float32([1.0, 2.0, 3.0, 4.0])  # one for each replica
AGGREGATORS = {
    "sum": ({}, {}, [-10.0] * 4),
    "its own": ({"gradient_aggregator": lambda gv: [(jax.lax.pmax(g, AXIS), v) for g, v in gv]}, {}, [-4.0] * 4),
    "clipped after it": ({"clipvalue": 5.0}, {}, [-5.0] * 4),
    "transformed after it": ({"gradient_transformers": [lambda gv: [(g / 4, v) for g, v in gv]]}, {}, [-2.5] * 4),
    "none": ({}, {"experimental_aggregate_gradients": False}, [-1.0, -2.0, -3.0, -4.0]),
}


@pytest.mark.parametrize(("kwargs", "how", "expected"), AGGREGATORS.values(), ids=AGGREGATORS)
def test_apply_gradients_in_vmap(kwargs, how, expected):
    def run(g):
        v = Variable(0.0, name="v")
        opt = SGD(1.0, axis_name=AXIS, **kwargs)
        opt.apply_gradients([(g, v)], **how)
        return v.value, opt.iterations.value

    values, iterations = jax.vmap(run, axis_name=AXIS)(GRADIENTS)
    assert_close(np.array(values), np.float32(expected))
    assert iterations.tolist() == [1] * 4


def test_minimize_and_slices_in_vmap():
    def run(x, i):
        table, opt = Variable([[0.0], [0.0]], name="table"), SGD(1.0, axis_name=AXIS)
        opt.minimize(lambda: jnp.sum(x * table), [table])
        opt.minimize(lambda: x * jnp.sum(table.sparse_read(i)), [table])
        opt.apply_gradients([(IndexedSlices(x[None, None], i), table)])
        return table.value

    tables = jax.vmap(run, axis_name=AXIS)(GRADIENTS, jnp.array([[0], [0], [1], [0]]))
    assert_close(np.array(tables), np.float32([[[-10 - 2 * 7], [-10 - 2 * 3]]] * 4))


def test_outside_of_the_axis():
    variables = make_variables()
    opt, step = Adam(0.1, axis_name=AXIS), lambda opt: opt.apply([np.ones(3), np.ones(1)], variables)
    opt.build(variables)
    before = snapshot(opt, variables)
    loss = lambda: sum(jnp.sum(v.value) for v in variables)  # noqa: E731
    for fn in (
        lambda: step(opt),
        lambda: opt.minimize(loss, variables),
        lambda: opt.make_train_step(loss, variables)(),
        lambda: opt.stateless_apply(before[2], [np.ones(3), np.ones(1)], before[0]),
    ):
        with pytest.raises(RuntimeError, match=r"cannot be called in cross-replica context.*'replica', which is not"):
            fn()
        assert_close(snapshot(opt, variables), before)
    opt.apply_gradients([(np.ones(3), variables[0])], experimental_aggregate_gradients=False)
    assert int(opt.iterations) == 1
    step(Adam(0.1, axis_name=AXIS, gradient_aggregator=lambda gv: gv))


# add_weight


class Counting(Optimizer):
    """Adds up the gradients in a weight of its own."""

    def __init__(self, **modes):
        super().__init__("counting", learning_rate=1.0, axis_name=AXIS, gradient_aggregator=lambda gv: gv)
        self.total = self.add_weight("total", **modes)
        self.seen = self.add_weight("seen")

    def _resource_apply_dense(self, grad, var):
        self.total.assign(grad)
        self.seen.assign(self.total.read_value())
        var.assign_sub(grad)


class VariableAggregation(enum.Enum):
    """As TensorFlow has them."""

    NONE, SUM, MEAN, ONLY_FIRST_REPLICA = 0, 1, 2, 3


MODES = [
    ("sum", 10.0),
    ("MEAN", 2.5),
    ("only_first_replica", 1.0),
    (VariableAggregation.SUM, 10.0),
    (VariableAggregation.ONLY_FIRST_REPLICA, 1.0),
]


@pytest.mark.parametrize(("aggregation", "expected"), MODES)
def test_what_replicas_assign_to_a_weight(aggregation, expected):
    opt, v, x = Counting(aggregation=aggregation), Variable(0.0, name="v"), GRADIENTS
    step = opt.make_train_step(lambda x: v * jnp.sum(x), mesh=MESH)
    step(x)
    assert float(opt.total) == float(opt.seen) == expected
    opt.total.assign(7.0)  # outside of the replicas
    assert float(opt.total) == 7.0


@pytest.mark.parametrize(("aggregation", "expected"), MODES[:3])
@pytest.mark.parametrize("check_vma", [True, False])
def test_a_weight_in_shard_map(aggregation, expected, check_vma):
    def run(x):
        weight = Counting(aggregation=aggregation).total
        return weight.assign(x[0]).value[None]

    assert on_replicas(run, check_vma=check_vma)(GRADIENTS).tolist() == [expected] * 4


def test_a_weight_that_is_synchronized_when_read():
    def run(x):
        opt = Counting(synchronization="ON_READ", aggregation="sum")
        opt.apply([x], [Variable(0.0, name="v")])
        return opt.total.value, opt.total.read_value(), opt.seen.value

    own, total, seen = jax.vmap(run, axis_name=AXIS)(GRADIENTS)
    assert (own.tolist(), total.tolist(), seen.tolist()) == ([1.0, 2.0, 3.0, 4.0], [10.0] * 4, [10.0] * 4)
    assert float(Counting(synchronization="on_read", aggregation="sum").total.read_value()) == 0.0


WRONG = [
    ({"synchronization": "on_read", "trainable": True}, "ON_READ only for non-trainable variables"),
    ({"synchronization": "sometimes"}, "synchronization must be one of .*'ON_READ'.*, got 'sometimes'"),
    ({"aggregation": "max"}, "aggregation must be one of .*'ONLY_FIRST_REPLICA'.*, got 'max'"),
]


@pytest.mark.parametrize(("modes", "message"), WRONG)
def test_wrong_modes(modes, message):
    with pytest.raises(ValueError, match=message):
        Counting(**modes)
