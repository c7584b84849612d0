"""A step that fails changes nothing, and the next good one is as if it had never been tried."""

import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt.keras import Variable
from functional_opt.keras.optimizers import Adam

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
