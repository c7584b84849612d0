"""Every optimizer under the training loops of Flax, Equinox and Haiku gives the numbers that it gives on plain dicts.

The libraries' loops run one operation at a time, as the plain one does, so that not a bit may differ; a jitted loop,
of which XLA fuses the operations, may differ in the last ones.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from ..helpers import assert_close, make_params
from .helpers import STEPS, each, grads_at, trained

# Flax NNX


@functools.cache
def nnx_class() -> Any:
    nnx = pytest.importorskip("flax.nnx")

    class Dense(nnx.Module):
        def __init__(self, bias, kernel):
            self.bias, self.kernel = map(nnx.Param, (bias, kernel))

    class Model(nnx.Module):
        def __init__(self, dense, scale):
            self.dense, self.scale, self.seen = Dense(**dense), nnx.Param(scale), nnx.Variable(jnp.zeros(2))

    return Model


def nnx_model(params: Any) -> Any:
    return nnx_class()(**params)


def nnx_params(model: Any) -> Any:
    nnx = pytest.importorskip("flax.nnx")
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def nnx_grads(grads: Any) -> Any:
    """As `nnx.grad` gives them."""
    nnx = pytest.importorskip("flax.nnx")
    return nnx.state(nnx_model(grads), nnx.Param)


@each
def test_nnx(case):
    nnx = pytest.importorskip("flax.nnx")
    model = nnx_model(make_params())
    optimizer = nnx.Optimizer(model, case.tx(), wrt=nnx.Param)
    for i in range(STEPS):
        optimizer.update(model, nnx_grads(grads_at(i)))
    assert_close(nnx_params(model), trained(case)[0])


# Flax Linen


@each
def test_linen(case):
    """With leaves that carry the names of their axes."""
    linen, train_state = pytest.importorskip("flax.linen"), pytest.importorskip("flax.training.train_state")

    def boxed(tree):
        return jax.tree.map(lambda x: linen.Partitioned(x, names=("data", None)[: x.ndim]), tree)

    state = train_state.TrainState.create(apply_fn=None, params=boxed(make_params()), tx=case.tx())
    for i in range(STEPS):
        state = state.apply_gradients(grads=boxed(grads_at(i)))
    assert state.step == STEPS
    assert isinstance(state.params["dense"]["kernel"], linen.Partitioned)
    assert_close(linen.meta.unbox(state.params), trained(case)[0])


# Equinox


@functools.cache
def equinox_classes() -> Any:
    eqx = pytest.importorskip("equinox")

    class Dense(eqx.Module):
        bias: Any
        kernel: Any
        use_bias: bool = eqx.field(static=True, default=True)

    class Model(eqx.Module):
        dense: Any
        scale: Any
        activation: Any = jnp.tanh

        def __call__(self, x):
            return self.activation(x)

    return Model, Dense


def equinox_model(params: Any) -> Any:
    model, dense = equinox_classes()
    return model(dense(**params["dense"]), params["scale"])


@each
def test_equinox(case):
    eqx, tx = pytest.importorskip("equinox"), case.tx()
    model, grads = equinox_model(make_params()), [equinox_model(grads_at(i)) for i in range(STEPS)]

    @eqx.filter_jit
    def step(model, state, grads):
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    for g in grads:
        model, state = step(model, state, eqx.filter(g, eqx.is_inexact_array))
    assert model.activation is jnp.tanh
    plain = {"dense": {"bias": model.dense.bias, "kernel": model.dense.kernel}, "scale": model.scale}
    assert_close(plain, trained(case)[0], rtol=2e-5)
