"""What graph mode left in the signatures: gates, aggregation methods, global steps, operations, names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from functional_opt.keras import IndexedSlices, Variable
from functional_opt.keras.optimizers import SGD, Adam, AggregationMethod

from .helpers import BIAS, KERNEL, assert_close, assert_same, make_variables, snapshot


def loss(variables):
    return sum(jnp.sum(v**2) for v in variables)


def barriers(fn):
    """How many arrays each optimization barrier of a function holds back."""
    return [len(e.outvars) for e in jax.make_jaxpr(fn)().eqns if e.primitive.name == "optimization_barrier"]


GATES = {"GATE_NONE": [], "GATE_OP": [1, 1], "GATE_GRAPH": [2]}


@pytest.mark.parametrize(("gate", "expected"), GATES.items(), ids=GATES)
def test_gate_gradients(gate, expected):
    variables, opt = make_variables(), SGD(0.5)
    gate = getattr(opt, gate)

    def gradients():
        pairs = opt.compute_gradients(lambda: loss(variables), [*variables, Variable(0.0)], gate_gradients=gate)
        return [g for g, _ in pairs]

    assert barriers(gradients) == expected
    assert_close(gradients()[:2], [2 * KERNEL, 2 * BIAS])  # where nothing is traced
    assert_close(jax.jit(gradients)()[:2], [2 * KERNEL, 2 * BIAS])
    opt.minimize(lambda: loss(variables), variables, gate_gradients=gate)
    assert_close([v.numpy() for v in variables], [0 * KERNEL, 0 * BIAS])


def test_gates_hold_back_slices():
    table = Variable(KERNEL[:, None], name="table")

    def gradient(gate):
        ((g, _),) = SGD().compute_gradients(lambda: jnp.sum(table.sparse_read([1, 1])), gate_gradients=gate)
        assert isinstance(g, IndexedSlices)
        return g.values

    gradient(SGD.GATE_NONE)
    assert [barriers(lambda gate=gate: gradient(gate)) for gate in (0, 1, 2)] == [[], [2], [2]]


def test_gates_and_methods_that_there_are_not():
    variables, opt = make_variables(), SGD(0.5)
    for how, message in (
        ({"gate_gradients": 3}, r"gate_gradients must be one of: Optimizer.GATE_NONE, .* Not 3"),
        ({"gate_gradients": "GATE_OP"}, "gate_gradients must be one of"),
        ({"aggregation_method": 7}, "Invalid aggregation_method specified 7"),
        ({"aggregation_method": "add_n"}, "Invalid aggregation_method specified 'add_n'"),
    ):
        for fn in (opt.minimize, opt.compute_gradients):
            with pytest.raises(ValueError, match=message):
                fn(lambda: loss(variables), variables, **how)
    assert_same(snapshot(opt, variables), ([KERNEL, BIAS], [], [0]))


def test_aggregation_method():
    variables, opt = make_variables(), SGD(0.5)
    compute = lambda method: opt.compute_gradients(lambda: loss(variables), aggregation_method=method)  # noqa: E731
    for method in (None, AggregationMethod.DEFAULT, AggregationMethod.ADD_N):
        compute(method)
    for method in (AggregationMethod.EXPERIMENTAL_TREE, AggregationMethod.EXPERIMENTAL_ACCUMULATE_N):
        with pytest.warns(UserWarning, match="parts of a gradient are added as they come") as warned:
            assert_close([g for g, _ in compute(method)], [2 * KERNEL, 2 * BIAS])
        assert warned[0].filename == __file__


def test_colocate_gradients_with_ops():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("x"))
    v, b = Variable(np.zeros(8), name="v"), Variable(1.0, name="b")
    v.assign(jax.device_put(jnp.arange(8.0), split))
    whole = jax.device_put(jnp.ones(8), NamedSharding(mesh, PartitionSpec()))
    for colocate in (False, True):
        fn = lambda: jnp.sum(whole * v) * b  # noqa: E731
        pairs = SGD().compute_gradients(fn, [v, b], colocate_gradients_with_ops=colocate)
        assert pairs[0][0].sharding.is_equivalent_to(split, 1) == colocate
    assert_close([np.array(g) for g, _ in pairs], [np.ones(8, np.float32), np.float32(28.0)])
    opt = SGD(1.0)
    opt.minimize(lambda: jnp.sum(v[:2]), [v, b], colocate_gradients_with_ops=True)  # b has none
    assert v.numpy().tolist() == [-1.0, 0.0, *range(2, 8)]


class Counter:
    """A variable of another library."""

    value = jnp.array(5)


@pytest.mark.parametrize("make", [lambda: Variable(5, trainable=False), Counter])
def test_global_step(make):
    (kernel, _), opt, step = make_variables(), Adam(0.1), make()
    seen = []
    rate = lambda: (seen.append(int(step.value)), 0.1)[1]  # noqa: E731
    opt.learning_rate = rate
    opt.minimize(lambda: jnp.sum(kernel), [kernel], global_step=step)
    opt.apply_gradients([(np.ones(3), kernel)], global_step=step)
    assert int(step.value) == 7 and step.value.dtype == jnp.array(5).dtype
    assert set(seen) == {5, 6}  # incremented after the update
    opt.apply_gradients([], global_step=step)
    for wrong in ([(np.ones(2), kernel)], [(None, kernel)]):
        with pytest.raises(ValueError, match="gradient"):
            opt.apply_gradients(wrong, global_step=step)
    assert int(step.value) == 7
    with pytest.raises(TypeError, match="not a variable: 3"):
        opt.apply_gradients([(np.ones(3), kernel)], global_step=3)
    assert int(opt.iterations) == 2


def test_the_operation():
    variables, opt = make_variables(), SGD(0.1)
    first = opt.minimize(lambda: loss(variables), variables)
    second = opt.apply_gradients([(np.ones(3), variables[0])])
    assert int(second) == 2 and second == opt.iterations and second + 1 == 3
    assert int(first) == 2  # the iterations as they are now
    assert second.shape == () and second.dtype == jnp.int32 and "2" in repr(second)
    before = snapshot(opt, variables)
    for operation in (first, second):
        with pytest.raises(RuntimeError, match="this update was applied when minimize or apply_gradients was called"):
            operation.run()
    assert_same(snapshot(opt, variables), before)


def test_get_gradients_and_get_updates():
    (kernel, bias), opt = make_variables(), SGD(0.5)
    assert_close(opt.get_gradients(lambda: loss([kernel, bias]), [bias, kernel]), [2 * BIAS, 2 * KERNEL])
    assert_close(opt.get_gradients(lambda: loss([kernel]), kernel), [2 * KERNEL])
    (operation,) = opt.get_updates(lambda: loss([kernel, bias]), [kernel, bias])
    assert int(operation) == 1
    assert_close([kernel.numpy(), bias.numpy()], [0 * KERNEL, 0 * BIAS])
    for fn in (opt.get_gradients, opt.get_updates):
        with pytest.raises(ValueError, match="Variable dense/bias:0 has `None` for gradient. .*the loss reads it"):
            fn(lambda: loss([kernel]), [kernel, bias])
        for wrong in (jnp.float32(1.0), 1.0, kernel, None):
            with pytest.raises(
                TypeError, match="loss must be a function of no arguments that reads the variables, got"
            ):
                fn(wrong, [kernel])
    assert int(opt.iterations) == 1


def test_a_tape():
    (kernel, _), opt = make_variables(), SGD(0.5)
    with pytest.raises(TypeError, match="tape must be None: JAX has no tapes"):
        opt.minimize(lambda: loss([kernel]), [kernel], tape=object())
    opt.minimize(lambda: loss([kernel]), [kernel], tape=None)
    assert int(opt.iterations) == 1


def test_the_name_is_in_profiles():
    (kernel, _), opt = make_variables(), SGD(0.5, name="descent")
    opt.build([kernel])

    def text(name):
        def step(g):
            opt.apply_gradients([(g, kernel)], name=name)
            return kernel.value

        before = kernel.value, opt.iterations.value
        text = jax.jit(step).lower(jnp.ones(3)).as_text(debug_info=True)
        kernel.assign(before[0]), opt.iterations.assign(before[1])
        return text

    assert "/named_step/" in text("named_step")
    assert "/descent/" in text(None)
