"""A step that fails changes nothing, and the next good one is as if it had never been tried."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import keras
from functional_opt.keras import Variable
from functional_opt.keras.optimizers import SGD, Adam, LossScaleOptimizer, MultiOptimizer, Optimizer, OptimizerMap

from .helpers import assert_same, make_variables, snapshot


class Broken(Exception):
    pass


class Fuse:
    """A function of one argument that gives it back, until it is blown."""

    blown = False

    def __call__(self, x):
        if self.blown:
            raise Broken
        return x


def setting(fuse, place):
    """Variables and a step over them; what stands in `place` can be made to raise."""
    variables = make_variables(constraint=fuse if place == "constraint" else None)
    mean = Variable(0.0, trainable=False, name="mean")
    kwargs = {"gradient_aggregator": fuse} if place == "aggregator" else {}
    kwargs |= {"gradient_transformers": [fuse]} if place == "transformer" else {}
    rate = (lambda: fuse(0.1)) if place == "learning rate" else 0.1
    opt = Adam(rate, **kwargs)

    def loss(x):
        mean.assign_add(1.0)
        total = sum(jnp.sum(v**2) for v in variables) * jnp.sum(x)
        return fuse(total) if place == "loss" else total

    return opt, [*variables, mean], loss


def minimizer(opt, variables, loss):
    return lambda x: opt.minimize(lambda: loss(x), variables[:2])


def train_step(opt, variables, loss):
    return opt.make_train_step(loss, variables[:2])


PLACES = ["loss", "aggregator", "transformer", "constraint", "learning rate"]


def fail(step, fuse, opt, variables):
    """One step with the fuse blown, after which all is as before."""
    before = snapshot(opt, variables)
    fuse.blown = True
    for v in variables:
        v.constraint = v.constraint and (lambda x: fuse(x))  # one that is not compiled yet
    with pytest.raises(Broken):
        step(np.float32([1.0, 0.0]))  # another shape: traced anew
    assert_same(snapshot(opt, variables), before)
    fuse.blown = False


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", [minimizer, train_step])
def test_a_function_that_raises(way, place):
    results = []
    for failures in ((), (0, 2)):
        fuse = Fuse()
        opt, variables, loss = setting(fuse, place)
        step = way(opt, variables, loss)
        for i in range(3):
            if i in failures:
                fail(step, fuse, opt, variables)
            step(np.float32([1.0]))
        results.append(snapshot(opt, variables))
    assert_same(*results)
    assert (int(opt.iterations), float(variables[2])) == (3, 3.0)


BAD = [
    lambda a, b, new: [(np.ones(3), a), (np.ones(2), b)],
    lambda a, b, new: [(np.ones((1, 3)), a), (np.ones(1), b)],
    lambda a, b, new: [(np.ones(3), a), (1.0, b)],
    lambda a, b, new: [(np.ones(3), a), (np.ones(3), a), (np.ones(2), a)],
    lambda a, b, new: [(np.ones(3), a), (np.ones(2), new)],
    lambda a, b, new: [(np.ones(3), a), (np.ones(1, int), b)],
    lambda a, b, new: [(np.ones(1), new), (np.ones(1, int), b)],
]


@pytest.mark.parametrize("pairs", BAD)
def test_a_gradient_that_does_not_fit(pairs):
    (a, b), new = make_variables(), Variable([1.0], name="new")
    opt = Adam(0.1)
    opt.build([a, b])
    before = snapshot(opt, [a, b, new])
    with pytest.raises((ValueError, TypeError), match=r"(dense/kernel|dense/bias|new):0 has shape|must be floating"):
        opt.apply_gradients(pairs(a, b, new))
    assert_same(snapshot(opt, [a, b, new]), before)
    opt.apply_gradients([(np.ones(3), a), (np.ones(1), new)])
    assert int(opt.iterations) == 1
    assert len(opt.weights) == 1 + 2 * 3


def test_the_message_names_the_variable_and_the_shapes():
    (a, b), opt = make_variables(), Adam(0.1)
    with pytest.raises(ValueError, match=r"gradient of dense/bias:0 has shape \(2,\), the variable has \(1,\)"):
        opt.apply_gradients([(np.ones(3), a), (np.ones(2), b)])


def test_a_loss_of_a_train_step_that_is_no_array():
    (a, b), opt = make_variables(), Adam(0.1)
    before = snapshot(opt, [a, b])
    for loss in (lambda: None, lambda: 1.0, lambda: (jnp.sum(a.value), 1)):
        with pytest.raises(TypeError, match="the loss must be an array of floats"):
            opt.make_train_step(loss, [a])()
    assert_same(snapshot(opt, [a, b]), before)


def test_weights_that_wait_are_not_lost_in_a_failed_step():
    (a, _), opt, fuse = make_variables(), Adam(0.1), Fuse()
    opt.set_weights([7, np.ones(3), np.ones(3)])
    a.constraint, fuse.blown = fuse, True
    with pytest.raises(Broken):
        opt.apply_gradients([(np.ones(3), a)])
    assert (int(opt.iterations), opt.get_slot_names()) == (0, [])
    fuse.blown = False
    opt.apply_gradients([(np.ones(3), a)])
    assert int(opt.iterations) == 8
    np.testing.assert_allclose(opt.get_slot(a, "m").value, 1.0)


class Callback(Fuse):
    """A fuse that is blown, or not, while the compiled program runs."""

    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        x = jnp.asarray(x)
        if self.by is jax.debug.callback:
            jax.debug.callback(super().__call__, x)
            return x
        return jax.pure_callback(super().__call__, jax.ShapeDtypeStruct(x.shape, x.dtype), jax.lax.stop_gradient(x))


class Custom(Optimizer):
    """Gradient descent with a count of its own, in code of the user's, which a fuse may interrupt."""

    def __init__(self, fuse):
        super().__init__("Custom")
        self.fuse, self.taken = fuse, self.add_weight("taken")
        self._set_hyper("learning_rate", 0.1)

    def _create_slots(self, var_list):
        for v in var_list:
            self.add_slot(v, "last")

    def _resource_apply_dense(self, grad, var, apply_state=None):
        self.get_slot(var, "last").assign(grad)
        self.taken.assign_add(1.0)
        var.assign_sub(self.fuse(0.1 * grad))


CALLED = {
    "constraint": lambda fuse: (Adam(0.1), {"constraint": fuse}),
    "schedule": lambda fuse: (Adam(lambda step: fuse(0.1 / (1.0 + step))), {}),
    "custom code": lambda fuse: (Custom(fuse), {}),
    "of an inner optimizer": lambda fuse: (LossScaleOptimizer(Custom(fuse)), {}),
    "scaled": lambda fuse: (LossScaleOptimizer(Adam(0.1)), {"constraint": fuse}),
    "several": lambda fuse: (MultiOptimizer(OptimizerMap(Adam(0.1), {".*bias": SGD(0.1)})), {"constraint": fuse}),
    "loss": lambda fuse: (Adam(0.1), {}),
}


def steps_of(opt, variables, mean, fuse, place):
    def loss():
        mean.assign_add(1.0)
        total = sum(jnp.sum(v**2) for v in variables)
        return total + 0.0 * fuse(total) if place == "loss" else total

    @keras.function
    def whole():
        value, grads = keras.value_and_grad(loss, variables)
        opt.apply_gradients(zip(grads, variables, strict=True))
        return value

    grads = [jnp.ones(v.shape) for v in variables]
    return {
        "apply_gradients": lambda: opt.apply_gradients(zip(grads, variables, strict=True)),
        "minimize": lambda: opt.minimize(loss, variables),
        "make_train_step": opt.make_train_step(loss, variables),
        "function": whole,
    }


CALLS = [
    *(("pure", "constraint", way) for way in ("apply_gradients", "function")),
    *(("pure", "loss", way) for way in ("minimize", "make_train_step")),
    *(("pure", "schedule", way) for way in ("apply_gradients", "make_train_step")),
    *(("pure", "custom code", way) for way in ("apply_gradients", "minimize")),
    ("pure", "of an inner optimizer", "apply_gradients"),
    ("pure", "scaled", "apply_gradients"),
    ("pure", "several", "apply_gradients"),
    *(("debug", "constraint", way) for way in ("apply_gradients", "make_train_step")),
]


@pytest.mark.parametrize(("by", "place", "way"), CALLS)
def test_a_callback_that_raises(way, place, by):
    fuse = Callback(jax.pure_callback if by == "pure" else jax.debug.callback)
    opt, kwargs = CALLED[place](fuse)
    variables, mean = make_variables(**kwargs), Variable(0.0, trainable=False, name="mean")
    step = steps_of(opt, variables, mean, fuse, place)[way]
    for failures in (1, 2):
        before = snapshot(opt, [*variables, mean])
        fuse.blown = True
        for _ in range(failures):
            with pytest.raises((Broken, ValueError, jax.errors.JaxRuntimeError)):
                step()
            assert_same(snapshot(opt, [*variables, mean]), before)
        fuse.blown = False
        step()
    assert (int(opt.iterations), float(mean)) == (2, 0.0 if way == "apply_gradients" else 2.0)


@pytest.mark.parametrize(
    ("place", "way"),
    [
        *(("custom code", way) for way in ("apply_gradients", "minimize", "function")),
        ("of an inner optimizer", "make_train_step"),
        ("several", "apply_gradients"),
    ],
)
def test_code_that_raises_while_it_is_traced(way, place):
    fuse = Fuse()
    opt, kwargs = CALLED[place](fuse)
    variables, mean = make_variables(**kwargs), Variable(0.0, trainable=False, name="mean")
    step = steps_of(opt, variables, mean, fuse, place)[way]
    before = snapshot(opt, [*variables, mean])
    fuse.blown = True
    for _ in range(2):
        with pytest.raises(Broken):
            step()
        assert_same(snapshot(opt, [*variables, mean]), before)
    fuse.blown = False
    step()
    assert int(opt.iterations) == 1


def test_a_function_that_fails_between_its_steps():
    (a, b), count, fuse = make_variables(), Variable(0, trainable=False, name="count"), Fuse()
    first, second = Adam(0.1), SGD(0.1, momentum=0.9)

    @keras.function
    def step(x, twice=True):
        first.apply_gradients([(x * jnp.ones(3), a)])
        count.assign_add(1)
        fuse(x)
        if twice:
            second.apply_gradients([(jnp.ones(1), b)])

    everything = lambda: (snapshot(first, [a, b, count]), snapshot(second, []))  # noqa: E731
    fuse.blown, before = True, everything()
    for x in (1.0, np.ones(3)):
        with pytest.raises(Broken):
            step(x)
        assert_same(everything(), before)
    fuse.blown = False
    step(1.0)
    fuse.blown, before = True, everything()
    with pytest.raises(Broken):
        step(1.0, twice=False)
    assert_same(everything(), before)
    step(1.0)  # compiled: the fuse is not looked at
    assert (int(first.iterations), int(second.iterations), int(count)) == (2, 2, 2)


def test_a_function_that_makes_variables_may_fail_at_first():
    made, fuse, calls = [], Fuse(), []

    @keras.function
    def scaled(x):
        calls.append(x)
        fuse.blown = len(calls) == 2  # after the trace, which finds out that a variable is made of `x`
        fuse(x)
        if not made:
            made.append(Variable(2.0 * x, name="scale"))
        return made[0] * x

    with pytest.raises(Broken):
        scaled(3.0)
    assert not made
    assert [float(scaled(3.0)) for _ in range(2)] == [18.0, 18.0]
