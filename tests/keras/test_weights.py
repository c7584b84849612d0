"""Slots, weights and iterations: views of the state that can be assigned to."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt.keras import Variable
from functional_opt.keras.optimizers import SGD, Adam, LossScaleOptimizer, MultiOptimizer, RMSprop

from .helpers import KERNEL, assert_close, assert_same, make_gradients, make_variables, no_compilation, train


def test_names_before_and_after():
    a, b = make_variables()
    opt = Adam()
    assert opt.get_slot_names() == []
    assert [w.name for w in opt.weights] == ["Adam/iter:0"]
    assert_same(opt.get_weights(), [0])
    with pytest.raises(KeyError):
        opt.get_slot(a, "m")
    opt.build([a, b])
    assert opt.get_slot_names() == ["m", "v"]
    assert [w.name for w in opt.weights] == [
        "Adam/iter:0",
        "Adam/dense/kernel/m:0",
        "Adam/dense/bias/m:0",
        "Adam/dense/kernel/v:0",
        "Adam/dense/bias/v:0",
    ]
    assert_same(opt.get_weights(), [0, np.zeros(3), np.zeros(1), np.zeros(3), np.zeros(1)])


@pytest.mark.parametrize(
    ("opt", "names"),
    [
        (SGD(), []),
        (SGD(momentum=0.9), ["momentum"]),
        (SGD(momentum=lambda: 0.0), ["momentum"]),
        (RMSprop(), ["rms"]),
        (RMSprop(momentum=0.9, centered=True), ["rms", "momentum", "mg"]),
        (Adam(amsgrad=True, name="mine"), ["m", "v", "vhat"]),
    ],
)
def test_slot_names(opt, names):
    (a, _) = make_variables()
    opt.build([a])
    assert opt.get_slot_names() == names
    assert [w.name for w in opt.weights[1:]] == [f"{opt.get_config()['name']}/dense/kernel/{n}:0" for n in names]


def test_get_slot_of_what_is_not_there():
    a, b = make_variables()
    opt = Adam()
    opt.build([a])
    for v, name in ((b, "m"), (a, "momentum"), (a, "mu"), (a, "")):
        with pytest.raises(KeyError, match=f"there is no slot {name!r} of"):
            opt.get_slot(v, name)


def test_a_slot_is_a_view():
    (a, _), opt = make_variables(), Adam(0.1)
    opt.build([a])
    m = opt.get_slot(a, "m")
    assert isinstance(m, Variable)
    assert (m.shape, m.dtype, m.trainable) == ((3,), jnp.float32, False)
    opt.apply_gradients([(np.ones(3), a)])
    np.testing.assert_allclose(m.value, 0.1, rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(m) + jax.jit(jnp.sum)(2 * m), 0.9, rtol=1e-6)
    m.assign(np.zeros(3)).assign_add(np.full(3, 10.0))
    assert opt.get_slot(a, "m").value.tolist() == [10.0] * 3
    before = a.numpy()
    opt.apply_gradients([(np.zeros(3), a)])
    assert (a.value < before - 1.0).all()
    np.testing.assert_allclose(m.value, 9.0, rtol=1e-6)
    with pytest.raises(ValueError, match=r"'Adam/dense/kernel/m' has shape \(3,\)"):
        m.assign(1.0)


def test_weights_go_from_one_optimizer_to_another():
    gradients, (variables, others) = make_gradients(6), (make_variables(), make_variables())
    opt, other = Adam(0.1), Adam(0.1)
    train(opt, variables, gradients[:3])
    for v, w in zip(variables, others, strict=True):
        w.assign(v)
    other.set_weights(opt.get_weights())  # kept until it has slots
    assert (int(other.iterations), other.get_slot_names()) == (0, [])
    train(opt, variables, gradients[3:])
    assert_same(train(other, others, gradients[3:]), [v.numpy() for v in variables])
    assert_same(other.get_weights(), opt.get_weights())
    with no_compilation():
        other.set_weights([np.zeros_like(w) for w in other.get_weights()])
        assert_same(train(other, make_variables(), []), [v.numpy() for v in make_variables()])
        assert int(other.iterations) == 0
        others[0].assign(KERNEL)
        other.apply_gradients(zip(gradients[0], others, strict=True))
    np.testing.assert_allclose(others[0].value, KERNEL - 0.1 * np.sign(gradients[0][0]), rtol=1e-4)


@pytest.mark.parametrize("built", [False, True])
def test_weights_that_do_not_fit(built):
    variables, opt = make_variables(), Adam(0.1)
    good = [2, np.ones(3), np.ones(1), np.ones(3), np.ones(1)]

    def put(weights):
        opt.set_weights(weights)
        opt.build(variables)

    if built:
        opt.build(variables)
    before = opt.get_weights()
    for wrong in ([], good[:-1], [*good, np.ones(1)]):
        length = f"weight list of length {len(wrong)}, but .* was expecting 5 weights"
        at_once = r"weight 0 must be Adam/iter:0 of shape \(\), got nothing"  # what no variables could make fit
        with pytest.raises(ValueError, match=length if built or wrong else at_once):
            put(wrong)
        assert_same(opt.get_weights(), before)
    with pytest.raises(ValueError, match=r"Adam/dense/bias/v:0 has shape \(1,\); it cannot be set to \(2,\)"):
        put([*good[:-1], np.ones(2)])
    assert_same(opt.get_weights(), before)
    put(good)
    assert_same(opt.get_weights(), good)


def test_weights_that_wait_are_copies():
    variables, opt = make_variables(), Adam(0.1)
    given = [np.array(2), np.ones(3), np.ones(1), np.ones(3), np.ones(1)]
    opt.set_weights(given)
    given[0][...] = given[1][:] = 7
    opt.build(variables)
    assert_same(opt.get_weights(), [2, np.ones(3), np.ones(1), np.ones(3), np.ones(1)])


def test_weights_are_copies():
    (a, _), opt = make_variables(), Adam(0.1)
    opt.apply_gradients([(np.ones(3), a)])
    weights = opt.get_weights()
    given = [w.copy() for w in weights]
    opt.set_weights(given)
    weights[1][:] = given[1][:] = 7.0
    np.testing.assert_allclose(opt.get_slot(a, "m").value, 0.1, rtol=1e-6)


def move_by_assign(opt, n):
    opt.iterations.assign(n)


def move_by_weights(opt, n):
    opt.set_weights([n, *opt.get_weights()[1:]])


def move_before_the_start(opt, n):
    opt.iterations = Variable(n, name="mine")


@pytest.mark.parametrize("move", [move_by_assign, move_by_weights, move_before_the_start])
def test_iterations_move_the_bias_correction_and_the_schedule(move):
    v = Variable(1.0, name="v")
    opt = Adam(lambda t: jnp.where(t == 4, 0.5, 0.25), epsilon=1e-20)
    if move is not move_before_the_start:
        opt.build([v])
    move(opt, 4)
    opt.apply_gradients([(1.0, v)])
    m_hat, v_hat = 0.1 / (1 - 0.9**5), 0.001 / (1 - 0.999**5)
    np.testing.assert_allclose(v.value, 1 - 0.5 * m_hat / v_hat**0.5, rtol=1e-4)
    assert int(opt.iterations) == 5


def test_iterations_can_go_back():
    v, opt = Variable(0.0, name="v"), Adam(0.5, epsilon=1e-20)
    for _ in range(3):
        opt.apply_gradients([(1.0, v)])
    before = v.numpy()
    opt.set_weights([0, 0.0, 0.0])
    opt.apply_gradients([(1.0, v)])
    np.testing.assert_allclose(v.value - before, -0.5, rtol=1e-4)


def test_iterations_shared_by_two_optimizers():
    a, b, shared = Variable(0.0, name="a"), Variable(0.0, name="a"), Variable(0, name="step")
    first, second = Adam(0.5), Adam(0.5)
    first.iterations = second.iterations = shared
    assert int(first.apply_gradients([(1.0, a)])) == int(shared) == 1
    second.apply_gradients([(1.0, b)])
    assert int(shared) == 2
    np.testing.assert_allclose(b.value, -0.5 * 0.1 / (1 - 0.81) / (0.001 / (1 - 0.999**2)) ** 0.5, rtol=1e-4)


def test_what_iterations_cannot_be():
    opt = Adam()
    for wrong in (3, None, jnp.int32(3), Variable(1.0), Variable([1, 2])):
        with pytest.raises(TypeError, match="iterations must be a Variable that holds one integer, got"):
            opt.iterations = wrong
    opt.build([Variable(1.0)])
    with pytest.raises(RuntimeError, match="Cannot set `iterations` to a new Variable after"):
        opt.iterations = Variable(3)
    assert int(opt.iterations) == 0


def test_build_twice_keeps_what_is_there():
    (a, b), opt = make_variables(), Adam(0.1)
    opt.apply_gradients([(np.ones(3), a)])
    opt.build([a, b])
    opt.build([])
    assert_close(opt.get_weights(), [1, np.full(3, 0.1), np.full(3, 0.001), np.zeros(1), np.zeros(1)])


def of_the_users_own():
    class Own(Adam):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate)

    return Own(0.1)


WITH_WEIGHTS = {
    "Adam": lambda: Adam(0.1),
    "own": of_the_users_own,
    "scaled": lambda: LossScaleOptimizer(Adam(0.1), initial_scale=1.0),
    "several": lambda: MultiOptimizer(lambda v, made=[]: made[0] if made else made.append(Adam(0.1)) or made[0]),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", WITH_WEIGHTS)
def test_weights_that_waited_and_do_not_fit_are_refused_until_others_are_given(kind, compiled):
    def trained():
        v, opt = Variable([1.0, 2.0], name="v"), WITH_WEIGHTS[kind]()
        minimize = lambda: opt.minimize(lambda: jnp.sum(v**2), [v])  # noqa: E731
        return v, opt, opt.make_train_step(lambda: jnp.sum(v**2), [v]) if compiled else minimize

    v, opt, step = trained()
    step()
    step()
    after, end = v.numpy(), opt.get_weights()
    wrong = [np.ones(5) if x.shape == (2,) else x for x in end]
    for given in (end, None):
        v, opt, step = trained()
        opt.set_weights(wrong)
        for _ in range(2):
            with pytest.raises(
                ValueError, match=r"got before the first step do not fit .* opt\.set_weights\(opt\.get_weights"
            ):
                step()
            assert not opt.built and v.numpy().tolist() == [1.0, 2.0] and int(opt.iterations) == 0
        opt.set_weights(opt.get_weights() if given is None else given)
        if given is None:
            step()
            step()
            assert_close([v.numpy(), *opt.get_weights()], [after, *end])
        else:
            step()
            assert int(opt.iterations) == 3


@pytest.mark.parametrize("kind", [kind for kind in WITH_WEIGHTS if kind not in ("own", "several")])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_have_the_weights_that_wait(kind, copied):
    v, opt = Variable([1.0, 2.0], name="v"), WITH_WEIGHTS[kind]()
    opt.build([v])
    given = [x + 1 if x.shape == (2,) else x for x in opt.get_weights()]
    first = WITH_WEIGHTS[kind]()
    first.set_weights(given)
    twin = copied(first)
    twin.build([v])
    assert not first.built and len(first.get_weights()) < len(given)
    assert_same(twin.get_weights(), given)
    first.build([v])
    assert_same(first.get_weights(), given)


@pytest.mark.parametrize("kind", WITH_WEIGHTS)
def test_a_step_that_fails_keeps_the_weights_that_wait(kind):
    v, opt = Variable([1.0, 2.0], name="v"), WITH_WEIGHTS[kind]()
    opt.build([v])
    given = [x + 1 if x.shape == (2,) else x for x in opt.get_weights()]
    opt = WITH_WEIGHTS[kind]()
    opt.set_weights(given)

    def fails(x):
        raise RuntimeError("no")

    v.constraint = fails
    with pytest.raises(RuntimeError, match="no"):
        opt.apply_gradients([(jnp.ones(2), v)])
    assert not opt.built
    v.constraint = None
    opt.build([v])
    assert_same(opt.get_weights(), given)
