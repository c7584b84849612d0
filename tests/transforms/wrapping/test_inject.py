"""Hyperparameters in the state: read, set, scheduled, in their own dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from functional_opt import (
    adafactor,
    adam,
    adamw,
    inject_hyperparams,
    noisy_sgd,
    scale_by_adam,
    sgd,
    with_extra_args_support,
)
from functional_opt.core.queries import get

from ...helpers import assert_close, assert_same_types, at, make_grads, make_params, train


def test_16_bit_params_leave_the_hyperparameters_alone():
    """Optax keeps b2 in bfloat16, where 0.999 is 1, and the first update is NaN."""
    params, grads = make_params("bfloat16"), make_grads(3, "bfloat16")
    _, updates, state = train(inject_hyperparams(adam)(0.1), params, grads)
    assert_close(updates, train(adam(0.1), params, grads)[1], rtol=0.01)
    assert {x.dtype.name for x in state.hyperparams.values()} == {"float32"}
    peer = optax.inject_hyperparams(optax.adam)(0.1)
    spoiled, _ = peer.update(at(grads, 0), peer.init(params), params)
    assert not np.all(np.isfinite(np.asarray(spoiled["scale"], "float32")))


def test_set_between_steps():
    tx = inject_hyperparams(sgd)(learning_rate=0.1, momentum=None)
    state = tx.init({"w": 0.0})
    assert list(state.hyperparams) == ["learning_rate"]
    step = jax.jit(tx.update)
    for rate in (0.5, jnp.float32(0.25), np.float64(0.125)):
        state.hyperparams["learning_rate"] = rate
        updates, state = step({"w": jnp.float32(1.0)}, state)
        assert updates["w"] == -rate and state.hyperparams["learning_rate"].dtype == jnp.float32
    assert int(state.count) == 3


def test_schedules_as_in_optax():
    def build(inject, adam):
        return inject(adam)(lambda t: 0.1 / (1 + t), b1=lambda t: 0.9 - 0.1 * jnp.minimum(t, 3), b2=0.9)

    params, grads = make_params(), make_grads(6)
    mine, my_updates, state = train(build(inject_hyperparams, adam), params, grads)
    peer, peer_updates, peer_state = train(build(optax.inject_hyperparams, optax.adam), params, grads)
    assert_close(my_updates, peer_updates, rtol=1e-5, atol=1e-7)
    assert_close(
        state.hyperparams, {k: v for k, v in peer_state.hyperparams.items() if k in state.hyperparams}, rtol=1e-6
    )
    assert float(get(state, "hyperparams")["learning_rate"]) == np.float32(0.1 / 6)


def test_what_is_structure_stays_so():
    tx = inject_hyperparams(adafactor)(0.1, min_dim_size_to_factor=2, weight_decay_mask=lambda p: True)
    state = tx.init({"w": jnp.ones((3, 3))})
    assert "min_dim_size_to_factor" not in state.hyperparams and "decay_rate" in state.hyperparams
    assert get(state, "v_row")["w"].shape == (3,)


def test_static_args_name_what_is_no_schedule():
    def factory(rate, transform=None):
        assert callable(transform)
        return with_extra_args_support(sgd(transform(rate)))

    tx = inject_hyperparams(factory, static_args="transform")(0.5, transform=lambda r: 2 * r)
    assert list(tx.init(0.0).hyperparams) == ["rate"]
    assert tx.update(1.0, tx.init(0.0))[0] == -1.0
    with pytest.raises(ValueError, match=r"static_args has \['mask'\], which are not arguments of sgd"):
        inject_hyperparams(sgd, static_args="mask")


def test_classes_partials_and_foreign_factories():
    params, grads = make_params(), make_grads(2)
    for factory in (scale_by_adam, functools.partial(optax.scale_by_adam, b2=0.999), optax.scale_by_adam):
        _, updates, state = train(inject_hyperparams(factory)(b1=0.8), params, grads)
        assert_close(updates, train(scale_by_adam(b1=0.8), params, grads)[1], rtol=1e-4)
        assert state.hyperparams["b1"] == np.float32(0.8)


class Halves:
    """A stateful schedule: half as much whenever the loss it is told is above 1."""

    def init(self):
        return jnp.float32(1.0)

    def update(self, state, value, **extra):
        return jnp.where(value > 1, state / 2, state)

    def __call__(self, state, **extra):
        return state


def test_stateful_schedules():
    tx = inject_hyperparams(sgd)(Halves())
    state = tx.init({"w": 0.0})
    seen = []
    for value in (2.0, 0.5, 2.0, 2.0):
        updates, state = tx.update({"w": 1.0}, state, value=value)
        seen.append(float(updates["w"]))
    assert seen == [-1.0, -0.5, -0.5, -0.25]


def test_a_random_key_is_no_hyperparameter():
    tx = inject_hyperparams(noisy_sgd)(0.1, eta=0.5, key=jax.random.key(1))
    assert set(tx.init(1.0).hyperparams) == {"learning_rate", "eta", "gamma"}


def test_dtype_and_errors():
    tx = inject_hyperparams(adamw, hyperparam_dtype="bfloat16")(0.1)
    state = tx.init(make_params())
    assert state.hyperparams["b1"].dtype == jnp.bfloat16
    updates, after = tx.update(at(make_grads(1), 0), state, make_params())
    assert_same_types(after, state)
    assert repr(tx) == "inject_hyperparams(adamw, hyperparam_dtype='bfloat16')(learning_rate=0.1)"
    with pytest.raises(ValueError, match=r"b2 must be in \[0, 1\), got 1.5"):
        inject_hyperparams(adam)(0.1, b2=1.5)
    with pytest.raises(TypeError, match="missing a required argument: 'learning_rate'"):
        inject_hyperparams(adam)()


@pytest.mark.parametrize(
    "name, x, message",
    [
        ("lr", 0.1, r"must have the hyperparameters that init put there, .*; lr was added or is missing"),
        ("b1", "high", r"state.hyperparams\['b1'\] must be a number, got 'high' \(str\)"),
        ("learning_rate", lambda count: 0.1, r"state.hyperparams\['learning_rate'\] must be a number, got <function"),
    ],
)
def test_what_is_assigned_must_be_a_hyperparameter(name, x, message):
    tx = inject_hyperparams(adam)(0.1)
    state = tx.init({"w": 0.0})
    state.hyperparams[name] = x
    with pytest.raises((TypeError, ValueError), match=message):
        tx.update({"w": 1.0}, state)


def test_a_transformation_in_place_of_its_constructor():
    with pytest.raises(
        TypeError, match="inner_factory must be a function, got chain.*; give the function that makes it"
    ):
        inject_hyperparams(adam(0.1))  # pyright: ignore[reportArgumentType]
