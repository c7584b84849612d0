"""Optimizers of the user's own, written the OptimizerV2 way and the Keras 3 way."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import chain, scale_by_adam, scale_by_learning_rate
from functional_opt.keras import IndexedSlices, Variable
from functional_opt.keras.optimizers import SGD, Adam, Optimizer, schedules

from .helpers import assert_close, assert_same, no_compilation


class OldMomentum(Optimizer):
    """SGD with momentum as one wrote it for tf.keras."""

    def __init__(self, learning_rate=0.1, momentum=0.9, name="OldMomentum", **kwargs):
        super().__init__(name, **kwargs)
        self._set_hyper("learning_rate", kwargs.get("lr", learning_rate))
        self._set_hyper("momentum", momentum)

    def _create_slots(self, var_list):
        for var in var_list:
            self.add_slot(var, "momentum")

    def _prepare_local(self, var_device, var_dtype, apply_state):
        super()._prepare_local(var_device, var_dtype, apply_state)
        apply_state[(var_device, var_dtype)]["momentum"] = self._get_hyper("momentum", var_dtype)

    def _resource_apply_dense(self, grad, var, apply_state=None):
        (coefficients,) = apply_state.values()
        m = self.get_slot(var, "momentum")
        m.assign(coefficients["momentum"] * m - coefficients["lr_t"] * grad)
        var.assign_add(m)

    def _resource_apply_sparse(self, grad, var, indices):
        var.assign(var.value.at[indices].add(-self._decayed_lr(var.dtype) * grad, mode="drop"))

    def get_config(self):
        return super().get_config()


class NewMomentum(Optimizer):
    """The same as one writes it for Keras 3."""

    def __init__(self, learning_rate=0.1, momentum=0.9, **kwargs):
        super().__init__("new", learning_rate=learning_rate, **kwargs)
        self.momentum = momentum

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.momentums = [self.add_variable_from_reference(v, name="momentum") for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        m = self.momentums[self._get_variable_index(variable)]
        self.assign(m, self.momentum * m.value - learning_rate * gradient)
        self.assign_add(variable, m.value)


def variables():
    return [Variable([[1.0, 2.0], [3.0, 4.0]], name="kernel"), Variable([1.0, -1.0], name="bias")]


def loss(vs):
    return jnp.sum(vs[0] ** 2) + jnp.sum(jnp.cos(vs[1]))


@pytest.mark.parametrize("kind", [OldMomentum, NewMomentum])
@pytest.mark.parametrize("options", [{}, {"clipnorm": 0.5}, {"decay": 0.5}], ids=str)
def test_they_train_as_the_built_in_one_does(kind, options):
    ours, theirs = variables(), variables()
    opt, built_in = kind(0.1, 0.9, **options), SGD(0.1, 0.9, **options)
    for each, vs in ((opt, ours), (built_in, theirs)):
        step = each.make_train_step(lambda vs=vs: loss(vs))
        for _ in range(3):
            each.minimize(lambda vs=vs: loss(vs), vs)
            step()
    assert_close([v.numpy() for v in ours], [v.numpy() for v in theirs])
    assert_close(opt.get_weights(), built_in.get_weights())
    assert int(opt.iterations) == 6 and opt.get_slot_names() == ["momentum"]


@pytest.mark.parametrize("kind", [OldMomentum, NewMomentum])
def test_hyperparameters_and_slots_can_be_reassigned_without_compiling(kind):
    vs, opt = variables(), kind(0.1, 0.0)
    opt.apply_gradients([(jnp.ones(2), vs[1])])
    with no_compilation():
        for rate in (0.5, 0.25):
            opt.learning_rate = rate
            before = vs[1].numpy()
            opt.apply_gradients([(jnp.ones(2), vs[1])])
            assert_close(vs[1].numpy(), before - np.float32(rate))
    opt.learning_rate = schedules.PiecewiseConstantDecay([3], [0.0, 1.0])
    before = vs[1].numpy()
    opt.apply_gradients([(jnp.ones(2), vs[1])])
    assert_same(vs[1].numpy(), before)
    opt.apply_gradients([(jnp.ones(2), vs[1])])
    assert_close(vs[1].numpy(), before - 1)


def test_late_variables_sparse_rows_and_the_iteration():
    class Counting(OldMomentum):
        def _resource_apply_dense(self, grad, var):
            self.add_slot(var, "momentum")  # again: the same one
            var.assign(var.value * 0 + self.iterations.value)

    (kernel, bias), opt = variables(), Counting()
    opt.apply_gradients([(jnp.ones((2, 2)), kernel)])
    opt.apply_gradients([(jnp.ones(2), bias)])
    assert kernel.numpy().tolist() == [[0.0, 0.0], [0.0, 0.0]] and bias.numpy().tolist() == [1.0, 1.0]
    opt.apply_gradients([(IndexedSlices(jnp.full((2, 2), 5.0), [1, 1]), kernel)])
    assert kernel.numpy().tolist() == [[0.0, 0.0], [-1.0, -1.0]]
    assert [w.path for w in opt.weights] == [
        "OldMomentum/iter",
        "OldMomentum/kernel/momentum",
        "OldMomentum/bias/momentum",
    ]


def test_initializers():
    class Slots(OldMomentum):
        def _create_slots(self, var_list):
            for var in var_list:
                self.add_slot(var, "ones", "ones")
                self.add_slot(var, "given", np.array([3.0, 4.0]))
                self.add_slot(var, "made", lambda shape, dtype: jnp.full(shape, 2, dtype), shape=(3,))

    opt, bias = Slots(), variables()[1]
    opt.build([bias])
    made = [opt.get_slot(bias, name).numpy().tolist() for name in opt.get_slot_names()]
    assert dict(zip(opt.get_slot_names(), made, strict=True)) == {
        "ones": [1.0, 1.0],
        "given": [3.0, 4.0],
        "made": [2.0, 2.0, 2.0],
    }


def test_a_failing_update_changes_nothing():
    class Failing(OldMomentum):
        def _resource_apply_dense(self, grad, var, apply_state=None):
            super()._resource_apply_dense(grad, var, apply_state)
            if "bias" in var.name:
                raise RuntimeError("no")

    vs, opt = variables(), Failing()
    opt.apply_gradients([(jnp.ones((2, 2)), vs[0])])
    before = opt.get_weights(), [v.numpy() for v in vs]
    with pytest.raises(RuntimeError, match="no"):
        opt.apply_gradients([(jnp.ones((2, 2)), vs[0]), (jnp.ones(2), vs[1])])
    assert_same((opt.get_weights(), [v.numpy() for v in vs]), before)


def test_a_count_that_comes_later_is_that_of_the_steps_done():
    class Late(Optimizer):
        adapts = False

        def transform(self, hyper):
            rate = scale_by_learning_rate(hyper.learning_rate)
            return chain(scale_by_adam(b1=0.5, b2=0.0, eps=0.0), rate) if self.adapts else rate

    v, opt = Variable(0.0, name="v"), Late("Late", learning_rate=1.0)
    for _ in range(3):
        opt.apply_gradients([(1.0, v)])
    opt.adapts = True
    opt.apply_gradients([(1.0, v)])  # m̂ = 0.5 / (1 − 0.5⁴)
    np.testing.assert_allclose(v.value, -3 - 8 / 15, rtol=1e-6)


def test_built_in_optimizers_take_slots_besides_those_of_their_rule():
    opt, (kernel, bias) = Adam(0.1), variables()
    start = opt.add_slot(bias, "start", initializer=bias.value)
    assert opt.add_slot(bias, "start") is not None and opt.get_slot_names() == ["m", "v", "start"]
    for step in (lambda: opt.minimize(lambda: jnp.sum(bias**2) + jnp.sum(kernel), [bias, kernel]),) * 2:
        step()
    opt.make_train_step(lambda: jnp.sum(bias**2), [bias])()
    assert opt.get_slot(bias, "start").numpy().tolist() == start.numpy().tolist() == variables()[1].numpy().tolist()
    start.assign([7.0, 8.0])
    assert opt.get_weights()[-1].tolist() == [7.0, 8.0] or [7.0, 8.0] in [w.tolist() for w in opt.get_weights()]
    twin = Adam(0.1)
    twin.add_slot(bias, "start")
    twin.build([bias, kernel])
    twin.set_weights(opt.get_weights())
    assert twin.get_slot(bias, "start").numpy().tolist() == [7.0, 8.0]
    with pytest.raises(KeyError):
        opt.get_slot(kernel, "start")
    with pytest.raises(ValueError, match="'m' is a slot that Adam keeps itself"):
        opt.add_slot(kernel, "m")


# Weights of its own


class OldCounter(Optimizer):
    """Adds up all gradients, which it divides by the number of steps, in weights of its own."""

    def __init__(self, name="counter", listed=False):
        super().__init__(name, learning_rate=1.0)
        self.total = self.add_weight("total", shape=(2,), initializer="ones")
        self.steps = self.add_weight("steps", dtype=jnp.int32)
        if listed:
            self._weights += [self.total, self.steps]

    def _resource_apply_dense(self, grad, var):
        self.total.assign_add(grad)
        self.steps.assign(self.steps + 1)
        var.assign_sub(self.total / self.steps)


class NewCounter(Optimizer):
    """The same, for Keras 3."""

    def __init__(self, name="counter", listed=True):
        super().__init__(name, learning_rate=1.0, dialect="keras3")
        self.total = self.add_variable((2,), "ones", name="total")
        self.steps = self.add_variable(shape=(), dtype="int32", name="steps")

    def update_step(self, gradient, variable, learning_rate):
        self.assign_add(self.total, gradient)
        self.assign_add(self.steps, 1)
        variable.assign(variable - self.total / self.steps)


def gradients_of(opt, v, way):
    """A function that does a step with a gradient, in one of the ways."""
    ways = {
        "apply": lambda g: opt.apply([g], [v]),
        "minimize": lambda g: opt.minimize(lambda: jnp.sum(g * v), [v]),
        "make_train_step": opt.make_train_step(lambda g: jnp.sum(g * v.value), [v]),
    }
    return ways[way]


@pytest.mark.parametrize("kind", [OldCounter, NewCounter])
@pytest.mark.parametrize("way", ["apply", "minimize", "make_train_step"])
def test_weights_of_its_own(kind, way):
    opt, v = kind(), Variable([0.0, 0.0], name="v")
    step = gradients_of(opt, v, way)
    for g in ([1.0, 2.0], [3.0, -1.0]):
        step(np.float32(g))
    assert opt.total.numpy().tolist() == [5.0, 2.0] and int(opt.steps) == 2
    assert v.numpy().tolist() == [-2.0 - 2.5, -3.0 - 1.0]
    opt.total.assign([0.0, 0.0])
    step(np.float32([3.0, 3.0]))
    assert v.numpy().tolist() == [-5.5, -5.0]
    assert [w.path for w in opt._own_weights] == ["counter/total", "counter/steps"]


@pytest.mark.parametrize("kind", [OldCounter, NewCounter])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_have_weights_of_their_own(kind, copied):
    opt, v = kind(listed=True), Variable([0.0, 0.0], name="v")
    opt.apply([np.ones(2)], [v])
    twin = copied(opt)
    twin.apply([np.ones(2)], [v])
    assert (opt.total.numpy().tolist(), twin.total.numpy().tolist()) == ([2.0, 2.0], [3.0, 3.0])
    assert (int(opt.steps), int(twin.steps)) == (1, 2) == (int(opt.get_weights()[-1]), int(twin.get_weights()[-1]))


def test_which_of_them_are_among_the_weights():
    listed, plain, new = OldCounter(listed=True), OldCounter(), NewCounter()
    names = [[w.path for w in opt.weights] for opt in (listed, plain, new)]
    own = ["counter/total", "counter/steps"]
    assert names == [["counter/iter", *own], ["counter/iter"], ["counter/iteration", "counter/learning_rate", *own]]
    for opt in (listed, new):
        v = Variable([0.0, 0.0], name="v")
        opt.set_weights([np.full(w.shape, 3) for w in opt.weights])  # kept until the first step
        opt.learning_rate = 1.0
        opt.apply([np.ones(2)], [v])
        assert (opt.total.numpy().tolist(), int(opt.steps), int(opt.iterations)) == ([4.0, 4.0], 4, 4)
        assert v.numpy().tolist() == [-1.0, -1.0]
        opt.set_weights([np.zeros(w.shape) for w in opt.weights])
        assert int(opt.steps) == 0


def test_stateless_apply_takes_and_returns_them():
    opt, v = NewCounter(), Variable([0.0, 0.0], name="v")
    opt.build([v])
    pure = jax.jit(opt.stateless_apply)
    values, weights = [v.value], [w.value for w in opt.variables]
    for _ in range(2):
        values, weights = pure(weights, [np.ones(2)], values)
    assert values[0].tolist() == [-2.0 - 1.5] * 2
    assert [w.tolist() for w in weights] == [2, 1.0, [3.0, 3.0], 2]
    assert opt.total.numpy().tolist() == [1.0, 1.0] and int(opt.steps) == 0


def test_a_weight_that_minimize_finds_by_itself():
    class Trained(OldCounter):
        def __init__(self):
            super().__init__()
            self.scale = self.add_weight("scale", shape=(2,), trainable=True)

    opt = Trained()
    (found,) = SGD().compute_gradients(lambda: jnp.sum(opt.scale * opt.total))
    assert found[1] is opt.scale and found[0].tolist() == [1.0, 1.0]


def test_a_variable_that_was_not_made_with_add_weight_is_carried_too():
    stray, v = Variable(1.0, name="stray"), Variable([0.0, 0.0], name="v")

    class Assigning(OldCounter):
        def _resource_apply_dense(self, grad, var):
            super()._resource_apply_dense(grad, var)
            stray.assign_add(1.0)

    opt = Assigning()
    for step in (lambda: opt.apply([np.ones(2)], [v]), opt.make_train_step(lambda: jnp.sum(v.value))):
        step()
        step()
    assert float(stray) == 5.0 and int(opt.iterations) == 4


# What else may be overridden and read


def test_what_is_prepared_once_for_a_step():
    prepared = []

    class Preparing(OldMomentum):
        def _prepare(self, var_list):
            prepared.append([v.path for v in var_list])
            apply_state = super()._prepare(var_list)
            apply_state["norm"] = sum(jnp.sum(v**2) for v in var_list)
            return apply_state

        def _resource_apply_dense(self, grad, var, apply_state=None):
            coefficients = apply_state[var.device, var.dtype]
            var.assign_sub(coefficients["lr_t"] * apply_state["norm"] * grad)

    vs, opt = variables(), Preparing(0.5)
    opt.apply([np.ones((2, 2)), np.ones(2)], vs)
    assert vs[0].numpy().tolist() == [[-15.0, -14.0], [-13.0, -12.0]] and vs[1].numpy().tolist() == [-15.0, -17.0]
    assert prepared == [["kernel", "bias"]] * 2  # once to see what it touches, once to compile
    opt.apply([np.ones((2, 2)), np.ones(2)], vs)
    assert len(prepared) == 2


SLICES = IndexedSlices(np.float32([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]]), [1, 0, 1])


def test_rows():
    class Adding(OldMomentum):
        def _resource_apply_sparse(self, grad, var, indices):
            assert len(indices) == 3
            self._resource_scatter_add(var, indices, grad)

    class Replacing(OldMomentum):
        def _resource_apply_sparse(self, grad, var, indices, apply_state):
            assert apply_state
            self._resource_scatter_update(var, indices, grad)

    class Plain(OldMomentum):
        pass  # none: slices are made dense

    kernel = np.float32([[1.0, 2.0], [3.0, 4.0]])
    moved = np.float32([[2.0], [5.0]])  # rows that are named twice are summed
    expected = {Adding: kernel + moved, Replacing: 0 * kernel + moved, Plain: kernel - 0.5 * moved}
    for kind, values in expected.items():
        v, opt = variables()[0], kind(0.5)
        opt.apply_gradients([(SLICES, v)])
        assert_close(v.numpy(), values)


def test_rows_as_they_come():
    class Unsummed(OldMomentum):
        def _resource_apply_sparse_duplicate_indices(self, grad, handle, indices, **kwargs):
            assert kwargs == {}
            return self._resource_apply_sparse(jnp.sqrt(grad), handle, indices)

    v = variables()[0]
    Unsummed(1.0).apply_gradients([(SLICES, v)])
    assert_close(v.numpy(), np.float32([[1.0 - 2**0.5, 2.0 - 2**0.5], [3.0 - 1.0 - 2.0, 4.0 - 1.0 - 2.0]]))


class Attributes(Optimizer):
    """Reads a hyperparameter and a plain attribute as such."""

    traced = 0

    def __init__(self):
        super().__init__("attributes", learning_rate=1.0)
        self._set_hyper("momentum", 0.5)
        self.scale, self.sign = 2.0, "minus"

    def _resource_apply_dense(self, grad, var):
        type(self).traced += 1
        var.assign(var + (-1 if self.sign == "minus" else 1) * self.scale * self.momentum * self.learning_rate * grad)


@pytest.mark.parametrize("way", ["apply", "make_train_step"])
def test_attributes_follow_reassignment(way):
    opt, v = Attributes(), Variable([0.0], name="v")
    step, one = gradients_of(opt, v, way), np.float32([1.0])

    def moved():
        v.assign([0.0])
        step(one)
        return float(v[0])

    assert moved() == -1.0
    traced = Attributes.traced
    opt.momentum = 0.25
    assert moved() == -0.5
    opt.momentum, opt.learning_rate = lambda: 0.75, 2.0
    assert moved() == -3.0
    assert Attributes.traced == traced  # hyperparameters are arguments of the compiled step
    opt.scale = 4.0
    assert moved() == -6.0
    opt.sign = "plus"
    assert moved() == 6.0
    opt.scale, opt.sign, opt.momentum = 2.0, "minus", 0.5
    assert moved() == -2.0


def test_a_rule_that_asks_for_a_rate_that_was_never_given():
    class Rateless(Optimizer):
        def update_step(self, gradient, variable, learning_rate):
            variable.assign(variable - learning_rate * gradient)

    v, opt = Variable(1.0, name="v"), Rateless("rateless")
    opt.learning_rate = 0.1  # a plain attribute, as in OptimizerV2
    with pytest.raises(
        AttributeError, match=r"Rateless has no learning rate: give it to the base class, as super\(\)"
    ):
        opt.minimize(lambda: v**2, [v])
