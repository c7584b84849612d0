"""Optimizers of the user's own, written the OptimizerV2 way and the Keras 3 way."""

import jax.numpy as jnp
import numpy as np
import pytest

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


def test_built_in_optimizers_have_the_slots_of_their_transformation():
    opt, bias = Adam(0.1), variables()[1]
    opt.build([bias])
    with pytest.raises(RuntimeError, match="Adam has the slots of its transformation; none can be added"):
        opt.add_slot(bias, "more")
