"""Optimizer.from_transformation: any chain, of this library or of Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functional_opt as fo
from functional_opt.keras import Variable
from functional_opt.keras.optimizers import SGD, Optimizer, schedules

from .helpers import BIAS, KERNEL, assert_close, assert_same, make_gradients, make_variables, train, train_core

from_transformation = Optimizer.from_transformation

CHAINS = [
    fo.adamw(0.1, weight_decay=0.5, mask={"*/bias": False}),
    fo.partition({"slow": fo.sgd(0.01, 0.9), "fast": fo.adam(0.1)}, {"*/bias": "slow", "**": "fast"}),
    fo.chain(fo.masked(fo.trace(0.9), {"*/bias": False}), fo.scale(-0.1)),
    fo.MultiSteps(fo.adam(0.1), 2),
    fo.named_chain(("momentum", fo.trace(0.9)), ("rate", fo.scale_by_schedule(lambda count: -0.1 / (1 + count)))),
    fo.GradientTransformation(lambda params: (), lambda updates, state, params=None: (updates, state)),
    optax.adam(0.1),
    optax.chain(optax.clip_by_global_norm(0.5), optax.lamb(optax.cosine_decay_schedule(0.1, 5))),
]


@pytest.mark.parametrize("tx", CHAINS, ids=[f"{i}" for i in range(len(CHAINS))])
def test_agrees_with_the_functional_core(tx):
    gradients = make_gradients(6)
    assert_close(train(from_transformation(tx), make_variables(), gradients), train_core(tx, gradients))


def test_a_step_that_is_skipped_does_not_count():
    gradients, tx = make_gradients(5), fo.apply_if_finite(fo.adam(0.1), 2)
    gradients[1][0] = np.float32([1.0, np.nan, 1.0])
    opt = from_transformation(tx)
    assert_close(train(opt, make_variables(), gradients), train_core(tx, gradients))
    assert int(opt.iterations) == 5


@pytest.mark.parametrize("tx", [fo.adam(0.1), optax.adam(0.1)], ids=["ours", "optax"])
def test_a_subset_of_the_variables(tx):
    kernel, bias = make_variables()
    opt = from_transformation(tx)
    opt.apply_gradients([(np.ones(3), kernel), (np.ones(1), bias)])
    before = [bias.numpy(), *(opt.get_slot(bias, n).numpy() for n in opt.get_slot_names())]
    opt.apply_gradients([(np.ones(3), kernel)])
    opt.make_train_step(lambda: jnp.sum(kernel), [kernel, bias])()
    late = Variable([1.0], name="late")
    opt.apply_gradients([(np.ones(1), late), (None, bias)])
    assert_same([bias.numpy(), *(opt.get_slot(bias, n).numpy() for n in opt.get_slot_names())], before)
    opt.apply_gradients([(np.ones(1), late), (np.ones(1), bias), (np.ones(3), kernel)])
    assert not np.array_equal(bias.value, before[0])
    assert opt.get_slot_names() == ["mu", "nu"]
    assert int(opt.iterations) == 5


def test_path_rules_see_the_names():
    kernel, bias = make_variables()
    tx = fo.chain(fo.add_decayed_weights(0.5, mask={"*/bias": False}), fo.sgd(1.0))
    opt = from_transformation(tx)
    opt.apply_gradients([(np.zeros(3), kernel), (np.zeros(1), bias)])
    assert_same([kernel.numpy(), bias.numpy()], [KERNEL / 2, BIAS])
    opt.apply_gradients([(np.zeros(3), kernel)])  # the rules still hold where some have no gradient
    opt.make_train_step(lambda: 0.0 * jnp.sum(kernel))()
    assert_same([kernel.numpy(), bias.numpy()], [KERNEL / 8, BIAS])
    with pytest.raises(ValueError, match=r"rule '\*/bias' matches no leaf; the nearest paths are dense/kernel"):
        from_transformation(tx).build([kernel])


def test_freezing_by_path():
    kernel, bias = make_variables()
    opt = from_transformation(fo.chain(fo.adam(0.5), fo.freeze({"dense/bias": True, "**": False})))
    opt.minimize(lambda: jnp.sum(kernel) + jnp.sum(bias))
    assert_close([kernel.value, bias.value], [KERNEL - 0.5, BIAS])


def test_the_learning_rate_in_a_chain():
    (kernel, _), tx = make_variables(), fo.chain(fo.clip(1.0), fo.masked(fo.sgd(0.5), {"**": True}))
    opt = from_transformation(tx)
    assert isinstance(opt.learning_rate, Variable)
    assert float(opt.learning_rate) == float(opt.lr) == 0.5
    rates = [0.5, 0.25, schedules.ExponentialDecay(8.0, 1, 0.5), lambda: 2.0]
    for rate, moved in zip(rates, [0.5, 0.25, 2.0, 2.0], strict=True):
        opt.learning_rate, before = rate, kernel.numpy()
        opt.apply_gradients([(np.full(3, 2.0), kernel)])
        np.testing.assert_allclose(before - kernel.value, moved, rtol=1e-6)
    assert tx == fo.chain(fo.clip(1.0), fo.masked(fo.sgd(0.5), {"**": True}))  # the chain itself is as it was
    schedule = fo.exponential_decay(0.5, 1, 0.5)
    assert from_transformation(fo.adam(schedule)).learning_rate is schedule


@pytest.mark.parametrize(
    "rate", [0.5, lambda: 0.5, lambda step: 0.5, Variable(0.5), schedules.ExponentialDecay(0.5, 1, 1.0)]
)
def test_a_learning_rate_given_beside_the_chain(rate):
    (kernel, _), opt = make_variables(), from_transformation(fo.identity(), learning_rate=rate)
    opt.apply_gradients([(np.ones(3), kernel)])
    np.testing.assert_allclose(kernel.value, KERNEL - 0.5)
    opt.learning_rate = 0.25
    opt.apply_gradients([(np.ones(3), kernel)])
    np.testing.assert_allclose(kernel.value, KERNEL - 0.75)


def test_the_arguments_of_every_optimizer():
    (kernel, _) = make_variables()
    with pytest.warns(UserWarning, match="`lr` argument is deprecated"):
        opt = from_transformation(optax.scale(2.0), "Mine", lr=0.5, decay=1.0, clipvalue=0.25)
    for _ in range(2):
        opt.apply_gradients([(np.ones(3), kernel)])
    np.testing.assert_allclose(kernel.value, KERNEL - 0.25 - 0.125)
    assert opt.weights[0].name == "Mine/iter:0"
    with pytest.raises(TypeError, match="Unexpected keyword argument passed to optimizer: beta_1"):
        from_transformation(fo.identity(), beta_1=0.9)
    with pytest.raises(ValueError, match="Expected learning_rate >= 0, received: -0.5"):
        from_transformation(fo.identity(), learning_rate=-0.5)


def test_two_learning_rates():
    with pytest.raises(
        ValueError, match=r"learning_rate must not be given where tx has one: .*sgd|learning_rate\(0.5\)"
    ):
        from_transformation(fo.sgd(0.5), learning_rate=0.1)
    two = fo.partition({"a": fo.sgd(0.1), "b": fo.sgd(0.2)}, lambda params: jax.tree.map(lambda _: "a", params))
    for tx in (two, optax.sgd(0.1), fo.scale(-0.1)):
        opt = from_transformation(tx)
        for name in ("learning_rate", "lr"):
            with pytest.raises(AttributeError):
                getattr(opt, name)
            with pytest.raises(AttributeError, match="learning_rate cannot be assigned: .* has no rate, or several"):
                setattr(opt, name, 0.5)
        kernel, _ = make_variables()
        opt.apply_gradients([(np.ones(3), kernel)])
        np.testing.assert_allclose(kernel.value, KERNEL - 0.1)


def test_slots_are_the_fields_of_the_state():
    kernel, bias = make_variables()
    tx = fo.partition({"a": fo.adam(0.1), "b": fo.chain(fo.trace(0.9), fo.adam(0.1))}, {"*/bias": "a", "**": "b"})
    opt = from_transformation(tx)
    opt.apply_gradients([(np.ones(3), kernel), (np.ones(1), bias)])
    assert opt.get_slot_names() == ["mu", "nu", "trace"]
    assert [w.name for w in opt.weights] == [
        "Optimizer/iter:0",
        *(f"Optimizer/dense/{v}/{slot}:0" for slot in ("mu", "nu") for v in ("kernel", "bias")),
        "Optimizer/dense/kernel/trace:0",
    ]
    np.testing.assert_allclose(opt.get_slot(bias, "mu").value, 0.1, rtol=1e-6)
    with pytest.raises(KeyError, match="there is no slot 'trace' of"):  # the chain for the bias has none
        opt.get_slot(bias, "trace")
    weights = opt.get_weights()
    train(opt, (kernel, bias), make_gradients(2))
    opt.set_weights(weights)
    assert_same(opt.get_weights(), weights)


def test_what_is_no_transformation():
    for wrong in (SGD(0.1), fo.adam, 0.1, None):
        with pytest.raises(TypeError, match="tx must be a gradient transformation"):
            from_transformation(wrong)
    with pytest.raises(
        NotImplementedError, match=r"its code is chain\(identity\(\), scale_by_learning_rate\(0.1\)\)"
    ):
        from_transformation(fo.sgd(0.1)).get_config()
