"""apply_gradients: pairs of all kinds, the order of what happens to them, agreement with the functional core."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import adam, chain, rmsprop, scale_by_learning_rate, trace
from functional_opt.keras import IndexedSlices, Variable
from functional_opt.keras.optimizers import SGD, Adam, RMSprop

from .helpers import KERNEL, assert_close, assert_same, make_gradients, make_variables, train, train_core

CORE = [
    (SGD(0.1, momentum=0.9, nesterov=True), chain(scale_by_learning_rate(0.1), trace(0.9, nesterov=True))),
    (RMSprop(0.1), rmsprop(0.1, decay=0.9, eps=1e-7, eps_in_sqrt=False)),
    (Adam(lambda t: 0.1 / (1 + t), beta_1=0.8), adam(lambda t: 0.1 / (1 + t), 0.8, eps=1e-7, eps_hat=True)),
]


@pytest.mark.parametrize(("opt", "tx"), CORE, ids=[repr(tx) for _, tx in CORE])
def test_agrees_with_the_functional_core(opt, tx):
    gradients = make_gradients(6)
    assert_close(train(opt, make_variables(), gradients), train_core(tx, gradients))


def test_gradients_of_all_kinds():
    given = [jnp.ones(3), np.ones(3), np.ones(3, np.float16), [1.0, 1.0, 1.0], Variable([1.0, 1.0, 1.0])]
    for g in given:
        v, _ = make_variables()
        SGD(0.5).apply_gradients([(g, v)])
        np.testing.assert_array_equal(v.value, KERNEL - 0.5)
    v = Variable(1.0)
    SGD(0.5).apply_gradients(iter([[2.0, v]]))
    assert v.value == 0.0


MALFORMED = [
    lambda g, v: [(g, v, "name")],
    lambda g, v: [(g,)],
    lambda g, v: [g, v],
    lambda g, v: [(v.value, g)],
    lambda g, v: ["gv"],
    lambda g, v: [(g, v), None],
    lambda g, v: {"g": v},
    lambda g, v: [(g, v.value)],
    lambda g, v: [(None, "v")],
]


@pytest.mark.parametrize("pairs", MALFORMED)
def test_malformed_pairs(pairs):
    v, opt = Variable(1.0), SGD(0.5)
    with pytest.raises(TypeError, match=r"pairs, got|must be a Variable, got"):
        opt.apply_gradients(pairs(np.float32(1.0), v))
    assert (float(v), int(opt.iterations)) == (1.0, 0)


def test_an_empty_list_does_nothing():
    opt = Adam(0.5)
    assert int(opt.apply_gradients([])) == 0
    assert int(opt.apply_gradients(zip([], [], strict=True))) == 0
    assert (int(opt.iterations), opt.get_slot_names()) == (0, [])


def test_none_is_left_out_with_a_warning(caplog):
    (kernel, bias), opt = make_variables(), Adam(0.5)
    with pytest.raises(ValueError, match=r"No gradients provided for any variable: \['dense/kernel:0', 'dense/bias"):
        opt.apply_gradients([(None, kernel), (None, bias)])
    assert int(opt.iterations) == 0
    opt.apply_gradients([(np.ones(3), kernel), (np.ones(1), bias)])
    slots, value = [opt.get_slot(bias, n).numpy() for n in ("m", "v")], bias.numpy()
    assert not caplog.records
    opt.apply_gradients([(None, bias), (np.ones(3), kernel)])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == "Gradients do not exist for variables ['dense/bias:0'] when minimizing the loss."
    assert_same([bias.numpy(), *(opt.get_slot(bias, n).numpy() for n in ("m", "v"))], [value, *slots])
    np.testing.assert_allclose(opt.get_slot(kernel, "m").value, 0.19, rtol=1e-5)
    assert int(opt.iterations) == 2


def test_a_variable_listed_twice_is_updated_twice():
    once = np.ones(3, np.float32)
    for first, second in ((once, 2 * once), (once, once)):  # also where both are one object
        v, _ = make_variables()
        opt = SGD(0.5, momentum=0.5)
        opt.apply_gradients([(first, v), (second, v)])
        a = -0.5 * first
        np.testing.assert_allclose(v.value, KERNEL + a + (0.5 * a - 0.5 * second))
        assert int(opt.iterations) == 1


def test_listed_twice_bias_correction_counts_one_step():
    v, opt = Variable(0.0, name="v"), Adam(0.5, epsilon=1e-20)
    opt.apply_gradients([(1.0, v), (1.0, v)])
    # m = 0.1, then 0.19; v = 0.001, then 0.001999; both corrected as at t = 1
    np.testing.assert_allclose(v.value, -0.5 * (1 + 1.9 / np.sqrt(1.999)), rtol=1e-5)
    opt.apply_gradients([(0.0, v)])
    m, u = 0.9 * 0.19 / 0.19, np.sqrt(0.999 * 0.001999 / 0.001999)
    np.testing.assert_allclose(v.value, -0.5 * (1 + 1.9 / np.sqrt(1.999) + m / u), rtol=1e-5)


def test_a_none_beside_a_gradient_of_the_same_variable():
    v, opt = Variable(1.0), SGD(0.5)
    opt.apply_gradients([(None, v), (1.0, v)])
    assert v.value == 0.5


def test_order_of_slots_is_that_of_the_list():
    (kernel, bias), opt = make_variables(), Adam(0.5)
    opt.apply_gradients([(np.ones(1), bias), (np.ones(3), kernel), (np.ones(1), bias)])
    assert [w.name for w in opt.weights[1:3]] == ["Adam/dense/bias/m:0", "Adam/dense/kernel/m:0"]


def test_late_variables_and_subsets():
    gradients, opt, late = make_gradients(4), Adam(0.1), Variable(1.0, name="late")
    kernel, bias = make_variables()
    opt.apply_gradients([(gradients[0][0], kernel)])
    opt.apply_gradients([(gradients[1][1], bias)])
    before = opt.get_slot(kernel, "m").numpy()
    opt.apply_gradients([(1.0, late), (gradients[2][1], bias)])
    np.testing.assert_array_equal(opt.get_slot(kernel, "m").value, before)
    np.testing.assert_allclose(before, 0.1 * gradients[0][0], rtol=1e-5)
    # the bias correction is that of the third step, as it is for all
    np.testing.assert_allclose(
        late.value, 1 - 0.1 * (0.1 / (1 - 0.9**3)) / (0.001 / (1 - 0.999**3)) ** 0.5, rtol=1e-4
    )
    # slots of variables seen later are appended
    assert [w.name.split("/", 1)[1] for w in opt.weights] == [
        "iter:0",
        *(f"{v}/{slot}:0" for v in ("dense/kernel", "dense/bias", "late") for slot in "mv"),
    ]


def test_variables_of_the_same_name():
    a, b, c = (Variable(x, name=n) for x, n in ((1.0, "w"), (2.0, "w"), (3.0, "w_2")))
    opt = Adam(0.5)
    opt.apply_gradients([(1.0, a), (2.0, b), (3.0, c)])
    np.testing.assert_allclose([float(opt.get_slot(v, "m")) for v in (a, b, c)], [0.1, 0.2, 0.3], rtol=1e-5)
    assert len({w.name for w in opt.weights}) == 7


@pytest.mark.parametrize("name", ["count", "inner", "", "a.b[0]'\""])
def test_odd_names(name):
    v, w = Variable(1.0, name=name), Variable(1.0, name="plain")
    opt = Adam(0.125)
    for _ in range(3):
        opt.minimize(lambda: v**2 + w**2, [v, w])
    assert v.value == w.value
    assert opt.get_slot(v, "m").value == opt.get_slot(w, "m").value
    assert opt.get_slot(v, "m").name == f"Adam/{name}/m:0"


def test_a_constraint_follows_each_update():
    seen = []

    def at_most_one(x):
        seen.append(x)
        return np.minimum(1.0, x) if isinstance(x, np.ndarray) else jnp.minimum(1.0, x)

    v, free = Variable([0.5, 0.75], name="v", constraint=at_most_one), Variable(0.5, name="free")
    opt = SGD(1.0)
    for _ in range(3):
        opt.apply_gradients([(np.float32([-1.0, 0.25]), v), (-1.0, free)])
    assert (v.value.tolist(), float(free)) == ([1.0, 0.0], 3.5)
    assert len(seen) == 1  # it is part of the compiled step
    opt.apply_gradients([(None, v), (1.0, free)])
    assert v.value.tolist() == [1.0, 0.0]


def test_in_code_that_is_compiled_by_the_user():
    fresh = Adam(0.5)  # not built yet

    @jax.jit
    def two_steps(value, g):
        v = Variable(value, name="v")
        fresh.apply_gradients([(g, v)])
        fresh.minimize(lambda: jnp.sum(g * v), [v])
        return v.value, fresh.get_slot(v, "m").value, fresh.iterations.value

    v, opt = Variable(KERNEL, name="v"), Adam(0.5)
    for _ in range(2):
        opt.apply_gradients([(np.ones(3), v)])
    assert_close(two_steps(KERNEL, np.ones(3)), (v.value, opt.get_slot(v, "m").value, 2))


@pytest.mark.parametrize(
    "gradient, error, message",
    [
        (np.ones(3) + 1j, TypeError, "the gradient of v:0 is complex, but the variable has dtype float32"),
        ("1.0", TypeError, r"the gradient of v:0 must be an array, got '1.0' \(str\)"),
        (
            IndexedSlices(np.ones(1), [0], (2,)),
            ValueError,
            r"the gradient of v:0 has shape \(2,\), the variable has \(3",
        ),
    ],
)
def test_gradients_that_do_not_fit(gradient, error, message):
    v = Variable(KERNEL, name="v")
    with pytest.raises(error, match=message):
        SGD(0.1).apply_gradients([(gradient, v)])
    assert v.value.tolist() == KERNEL.tolist()


def test_a_variable_that_cannot_be_trained():
    v = Variable(np.ones(3, "int32"), name="v")
    with pytest.raises(TypeError, match="v:0 has dtype int32 and cannot be trained"):
        SGD(0.1).apply_gradients([(np.ones(3), v)])
