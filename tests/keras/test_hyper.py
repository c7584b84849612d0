"""Hyperparameters: what they may be, when they are read, and that new ones compile nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import exponential_decay
from functional_opt.keras import Variable
from functional_opt.keras.optimizers import SGD, Adam, Optimizer, RMSprop, schedules

from .helpers import KERNEL, make_gradients, make_variables, no_compilation, train


def rates_of(opt, steps, change=lambda i: None):
    """The learning rates that an SGD optimizer works with, seen in what it does."""
    v, rates = Variable(0.0, name="v"), []
    for i in range(steps):
        change(i)
        before = float(v)
        opt.apply_gradients([(1.0, v)])
        rates.append(before - float(v))
    return rates


@pytest.mark.parametrize(
    "rate, message",
    [
        (lambda step, epoch: 0.1, "learning_rate must be a function of the step count alone, .*'epoch'"),
        (lambda: None, "the function .* must return a number, got None"),
        (lambda step: None, "the schedule .* must return a number, got None"),
    ],
)
def test_functions_that_give_no_rate(rate, message):
    with pytest.raises(TypeError, match=message):
        rates_of(SGD(rate), 1)


RATES = [
    0.5,
    np.float64(0.5),
    np.array(0.5, np.float16),
    jnp.array(0.5),
    jnp.array(0.5, "bfloat16"),
    Variable(0.5),
    lambda: 0.5,
    lambda: np.float64(0.5),
    lambda: jnp.float32(0.5),
    lambda: Variable(0.5),
    lambda count: 0.5,
    schedules.ExponentialDecay(0.5, 1, 1.0),
    exponential_decay(0.5, 1, 1.0),
]


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: type(rate).__name__)
def test_what_a_learning_rate_may_be(rate):
    assert rates_of(SGD(rate), 2) == [0.5] * 2
    opt = SGD(0.25)
    assert rates_of(opt, 1) == [0.25]
    opt.learning_rate = rate
    assert rates_of(opt, 2) == [0.5] * 2
    opt.learning_rate = 0.25
    assert rates_of(opt, 2) == [0.25] * 2
    assert opt.learning_rate == 0.25


@pytest.mark.parametrize("wrong", ["0.1", None, True, [0.1], np.ones(2), jnp.ones(1), Variable([0.1])])
def test_what_a_learning_rate_may_not_be(wrong):
    opt = SGD(0.5)
    with pytest.raises(TypeError, match="learning_rate must be a number, a schedule or a callable, got"):
        opt.learning_rate = wrong
    assert float(opt.learning_rate) == 0.5
    if wrong is not None:
        with pytest.raises(TypeError, match="learning_rate must be a number"):
            Adam(wrong)


def test_reading():
    opt = SGD(0.5, momentum=0.25)
    rate = opt.learning_rate
    assert isinstance(rate, Variable)
    assert (float(rate), rate.dtype, float(opt.lr), float(opt.momentum)) == (0.5, jnp.float32, 0.5, 0.25)
    opt.lr = 0.125
    assert float(opt.learning_rate) == float(rate) == 0.125
    opt.learning_rate.assign(0.5)
    opt.learning_rate = opt.learning_rate * 2
    assert rates_of(opt, 1) == [1.0]
    assert {"lr", "learning_rate", "momentum", "decay"} <= set(dir(opt))
    schedule = schedules.ExponentialDecay(0.5, 1, 1.0)
    opt.learning_rate = schedule
    assert opt.learning_rate is opt.lr is schedule
    with pytest.raises(AttributeError, match="'SGD' object has no attribute 'beta_1'"):
        opt.beta_1  # noqa: B018


def test_lr_warns_and_wins():
    for kind in (SGD, Adam, RMSprop):
        with pytest.warns(UserWarning, match="`lr` argument is deprecated") as record:
            opt = kind(0.25, lr=0.5)
        assert record[0].filename == __file__
        assert float(opt.learning_rate) == 0.5


def test_a_variable_is_followed():
    rate = Variable(0.5)
    opt = SGD(rate)
    assert opt.learning_rate is rate
    assert rates_of(opt, 3, lambda i: rate.assign(2.0**-i)) == [1.0, 0.5, 0.25]


def test_zero_argument_callables_are_called_at_each_apply():
    calls = iter([0.5, 0.25, 1.0])
    opt = SGD(lambda: next(calls))
    assert rates_of(opt, 3) == [0.5, 0.25, 1.0]
    betas = []
    opt = Adam(0.1, beta_1=lambda: betas.append(0) or 0.9)
    train(opt, make_variables(), make_gradients(3))
    assert len(betas) == 3


def test_functions_of_the_step():
    assert rates_of(SGD(lambda step: 1 / (1 + step)), 4) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert rates_of(SGD(lambda step, scale=2.0: scale * jnp.where(step < 1, 0.5, 1.0)), 2) == [1.0, 2.0]
    opt = SGD(lambda step: 1.0 * step)
    opt.iterations.assign(7)
    assert rates_of(opt, 2) == [7.0, 8.0]


def test_decay():
    assert rates_of(SGD(0.5, decay=0.5), 3) == pytest.approx([0.5, 0.5 / 1.5, 0.5 / 2])
    halving = schedules.ExponentialDecay(0.5, 1, 0.5)
    assert rates_of(SGD(halving, decay=0.5), 3) == pytest.approx([0.5, 0.25 / 1.5, 0.125 / 2])
    assert rates_of(SGD(lambda step: 0.5, decay=lambda: 0.5), 3) == pytest.approx([0.5, 0.5 / 1.5, 0.5 / 2])
    opt = SGD(0.5)
    assert rates_of(opt, 4, lambda i: setattr(opt, "decay", [0, 0, 0.5, 0][i])) == [0.5, 0.5, 0.25, 0.5]


def test_no_compilation():
    gradients, (variables, others) = make_gradients(1) * 70, (make_variables(), make_variables())
    opt = Adam(0.5)
    train(opt, variables, gradients[:1])
    with no_compilation():
        other = Adam(0.25, beta_1=0.5, name="Other")
        train(other, others, gradients[:1])
        for i, grads in enumerate(gradients):
            opt.learning_rate = 0.1 / (1 + i)
            opt.beta_1 = np.float64(0.9) if i % 2 else jnp.float32(0.8)
            opt.beta_2, opt.epsilon = 0.99 + i / 1e4, 1e-7 * (1 + i)
            opt.apply_gradients(zip(grads, variables, strict=True))
            opt.learning_rate = [1, np.int32(1), Variable(0.1), Variable(1), lambda: 0.1, lambda: 1][i % 6]
            opt.apply_gradients(zip(grads, variables, strict=True))
            other.learning_rate.assign(i)
            other.apply_gradients(zip(grads, others, strict=True))
    assert int(opt.iterations) == 141


def test_the_numbers_of_a_schedule_compile_nothing():
    gradients, variables = make_gradients(10), make_variables()
    for kind, numbers in (
        (schedules.ExponentialDecay, lambda i: (0.1 + i, 1 + i, 0.5)),
        (schedules.PiecewiseConstantDecay, lambda i: ([1 + i, 5 + i], [0.1 + i, 0.2, 0.3])),
        (lambda *args: schedules.CosineDecay(*args, warmup_target=0.5, warmup_steps=2), lambda i: (0.1 + i, 1 + i)),
    ):
        opt = Adam(kind(*numbers(0)))
        train(opt, variables, gradients[:1])
        with no_compilation():
            for i in range(1, 10):
                opt.learning_rate = kind(*numbers(i))
                train(opt, variables, gradients[i : i + 1])


def test_from_number_to_schedule_and_back_keeps_the_slots():
    gradients, results = make_gradients(6), []
    for rates in ([0.5] * 3, [0.5, schedules.ExponentialDecay(0.5, 1, 1.0), lambda: 0.5]):
        variables, opt = make_variables(), Adam()
        for i, rate in enumerate(rates):
            opt.learning_rate = rate
            train(opt, variables, gradients[2 * i : 2 * i + 2])
        results.append([v.numpy() for v in variables] + opt.get_weights())
    for x, y in zip(*results, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


def test_float64_variables_keep_their_digits_beside_others():
    with jax.enable_x64(True):
        (_, g), values = make_gradients(1)[0], []
        for beside in (False, True):
            opt, v, short = Adam(0.1), Variable(np.float64([0.5]), name="v"), Variable(np.float32(0.5), name="short")
            for _ in range(3):
                opt.apply_gradients([(g.astype("float64"), v), *([(np.float32(1.0), short)] if beside else [])])
            values.append(v.numpy())
        assert v.dtype == "float64" and short.dtype == "float32"
        np.testing.assert_allclose(*values, rtol=1e-15)


def test_a_schedule_put_in_later_begins_at_the_present_step():
    opt = SGD(0.0)
    assert rates_of(opt, 5) == [0.0] * 5
    opt.learning_rate = schedules.PiecewiseConstantDecay([4, 5], [0.0, 1.0, 2.0])
    assert rates_of(opt, 3) == [1.0, 2.0, 2.0]


def test_other_settings_may_change_too():
    (v, _), opt = make_variables(), Adam(0.5, beta_1=0.0, beta_2=0.0)
    opt.apply_gradients([(np.full(3, 2.0), v)])
    opt.amsgrad = True
    opt.apply_gradients([(np.full(3, 2.0), v)])
    opt.apply_gradients([(np.ones(3), v)])
    assert opt.get_slot_names() == ["m", "v", "vhat"]
    np.testing.assert_allclose(v.value, KERNEL - 0.5 - 0.5 - 0.25, rtol=1e-5)


@pytest.mark.parametrize("kind", [SGD, RMSprop])
def test_momentum_must_lie_between_0_and_1(kind):
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"`momentum` must be between \[0, 1\]. Received: momentum={wrong}"):
            kind(momentum=wrong)
    assert float(kind(momentum=1).momentum) == 1.0


@pytest.mark.parametrize("kind", [Adam, RMSprop])
@pytest.mark.parametrize("epsilon", [0, 0.0, None])
def test_no_epsilon_means_the_default(kind, epsilon):
    assert kind(epsilon=epsilon).epsilon == 1e-7


def test_a_class_must_say_what_it_is():
    opt = Optimizer("bare")
    with pytest.raises(NotImplementedError, match=r"Optimizer must override transform\(hyper\)"):
        opt.build([Variable(1.0)])
    assert opt.get_slot_names() == []


@pytest.mark.parametrize("name", ["beta_1", "beta_2"])
def test_the_decay_of_a_mean_must_lie_below_1(name):
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\), got 1.5"):
        Adam(**{name: 1.5})
    opt = Adam()
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\), got -0.5"):
        setattr(opt, name, -0.5)
    assert 0.8 < float(getattr(opt, name)) < 1


def test_no_learning_rate_is_refused():
    for kind in (SGD, Adam, RMSprop):
        with pytest.raises(TypeError, match="learning_rate must be a number, a schedule or a callable, got None"):
            kind(None)


@pytest.mark.parametrize(
    "name, message",
    [
        ("learning_rte", "Adam does not read learning_rte; did you mean learning_rate"),
        ("beta1", "Adam does not read beta1; did you mean beta_1"),
        ("clip_norm", "Adam does not read clip_norm; did you mean clipnorm"),
    ],
)
def test_an_assignment_that_nothing_reads(name, message):
    class Own(Adam):
        pass

    with pytest.raises(AttributeError, match=message):
        setattr(Adam(0.1), name, 0.5)
    opt = Adam(0.1)
    opt.tag = opt.lr = 0.5  # a name of the script's own, and an old one of Keras's
    own = Own(0.1)
    setattr(own, name, 0.5)  # which the code of a subclass may read
    assert (opt.tag, float(opt.learning_rate), getattr(own, name)) == (0.5, 0.5, 0.5)
