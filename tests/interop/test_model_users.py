"""As users of model libraries write it: losses for a step, averages in a state, names of Haiku, solvers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_opt as fo

from ..helpers import assert_close, make_params, rosenbrock
from .helpers import STEPS, grads_at
from .test_model_libraries import equinox_model, nnx_grads, nnx_model, nnx_params

SLOTS_IN_8_BITS = fo.quantize_state(fo.adam(0.1))


def large(tree):
    """The tree with a kernel large enough for codes, and no bias."""
    kernel = jnp.tile(tree["dense"]["kernel"], (16, 40))
    return {"dense": {"kernel": kernel, "bias": None}, "scale": tree["scale"]}


@functools.cache
def trained(tx, of=lambda tree: tree):
    params = of(make_params())
    state = tx.init(params)
    for i in range(STEPS):
        updates, state = tx.update(of(grads_at(i)), state, params)
        params = fo.apply_updates(params, updates)
    return params, state


def test_nnx_with_slots_in_8_bits_and_a_jitted_step():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx_model(large(make_params()))
    optimizer = nnx.Optimizer(model, SLOTS_IN_8_BITS, wrt=nnx.Param)
    step = nnx.jit(lambda model, optimizer, grads: optimizer.update(model, grads))
    for i in range(STEPS):
        step(model, optimizer, nnx_grads(large(grads_at(i))))
    assert any(x.dtype == jnp.int8 for x in jax.tree.leaves(optimizer.opt_state))
    assert_close(jax.tree.leaves(nnx_params(model)), jax.tree.leaves(trained(SLOTS_IN_8_BITS, large)[0]), rtol=1e-5)


def test_equinox_with_slots_in_8_bits():
    eqx = pytest.importorskip("equinox")
    model = equinox_model(large(make_params()))
    params = eqx.filter(model, eqx.is_inexact_array)
    state = SLOTS_IN_8_BITS.init(params)
    for i in range(STEPS):
        grads = eqx.filter(equinox_model(large(grads_at(i))), eqx.is_inexact_array)
        updates, state = SLOTS_IN_8_BITS.update(grads, state, params)
        params = eqx.apply_updates(params, updates)
    assert_close(jax.tree.leaves(params), jax.tree.leaves(trained(SLOTS_IN_8_BITS, large)[0]))


def model_and_grads(loss, params):
    """A model of nnx, and its loss and gradients, by a loss of plain params."""
    nnx = pytest.importorskip("flax.nnx")
    model = nnx_model(params)
    return model, *nnx.value_and_grad(lambda model: loss(nnx_params(model)))(model)


@pytest.mark.parametrize("tx", [fo.momo(0.1), fo.polyak_sgd(0.1), fo.chain(fo.adam(0.1), fo.reduce_on_plateau())])
def test_nnx_gives_a_step_the_loss(tx):
    nnx = pytest.importorskip("flax.nnx")
    params = make_params()
    model, value, grads = model_and_grads(rosenbrock, params)
    nnx.Optimizer(model, tx, wrt=nnx.Param).update(model, grads, value=value)
    updates, _ = tx.update(jax.grad(rosenbrock)(params), tx.init(params), params, value=value)
    assert_close(nnx_params(model), fo.apply_updates(params, updates), rtol=1e-6)


def test_nnx_gives_a_line_search_the_loss_function():
    """L-BFGS goes downhill; `value_fn` gets the params as nnx hands them to the step, a pure state."""
    nnx = pytest.importorskip("flax.nnx")
    model, value, grads = model_and_grads(rosenbrock, make_params())
    graph, *_ = nnx.split(model, nnx.Param, ...)

    def value_fn(params):
        return rosenbrock(nnx.to_pure_dict(params))

    optimizer = nnx.Optimizer(model, fo.lbfgs(), wrt=nnx.Param)
    optimizer.update(model, grads, value=value, grad=nnx.as_pure(grads), value_fn=value_fn)
    assert rosenbrock(nnx_params(model)) < 0.5 * value


@pytest.mark.filterwarnings("ignore:.*ModelAndOptimizer:DeprecationWarning")
def test_nnx_model_and_optimizer():
    nnx = pytest.importorskip("flax.nnx")
    both = nnx.ModelAndOptimizer(nnx_model(make_params()), tx := fo.adamw(0.1))
    for i in range(STEPS):
        both.update(nnx_grads(grads_at(i)))
    assert_close(nnx_params(both.model), trained(tx)[0])


@pytest.mark.parametrize(
    "tx",
    [
        fo.chain(fo.sgd(0.1), fo.params_ema(0.5)),
        fo.schedule_free_sgd(0.1),
        fo.chain(fo.masked(fo.params_ema(0.5), {"**/bias": False, "**": True}), fo.sgd(0.1)),
        fo.lookahead(fo.sgd(0.1), 2, 0.5),
    ],
    ids=["params_ema", "schedule_free", "masked", "lookahead"],
)
def test_averages_in_a_state_of_nnx(tx):
    """They come in variables where the params are, and for pure params pure ones; the model takes them."""
    nnx = pytest.importorskip("flax.nnx")
    model = nnx_model(make_params())
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for i in range(STEPS):
        optimizer.update(model, nnx_grads(grads_at(i)))
    params, state = trained(tx)
    expected = fo.eval_params(state, params)
    assert not np.array_equal(expected["scale"], params["scale"])
    pure = nnx.as_pure(nnx.state(model, nnx.Param))
    assert_close(nnx.to_pure_dict(fo.eval_params(optimizer.opt_state, pure)), expected)
    averages = fo.eval_params(optimizer.opt_state, nnx.state(model, nnx.Param))
    nnx.update(model, averages)
    assert_close(nnx_params(model), expected)
    with pytest.raises(ValueError, match="params must have the structure of those that the .*State was made for"):
        fo.eval_params(optimizer.opt_state, {"another": jnp.ones(2)})


def test_averages_in_a_train_state():
    train_state = pytest.importorskip("flax.training.train_state")
    tx = fo.chain(fo.sgd(0.1), fo.params_ema(0.5))
    state = train_state.TrainState.create(apply_fn=None, params=make_params(), tx=tx)
    state = state.apply_gradients(grads=grads_at(0))
    assert_close(fo.eval_params(state, state.params), fo.eval_params(state.opt_state, state.params))
    assert_close(fo.eval_params(state, state.params)["scale"], state.params["scale"], rtol=1e-6)


def test_fields_of_a_state_of_nnx():
    """They are read without variables, and set in them."""
    nnx = pytest.importorskip("flax.nnx")
    tx = fo.with_metrics(fo.adam(0.1))
    model = nnx_model(make_params())
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, nnx_grads(grads_at(0)))
    mu = fo.tree.get(optimizer.opt_state, "mu")
    assert_close(nnx.to_pure_dict(mu), jax.tree.map(lambda g: 0.1 * g, grads_at(0)), rtol=1e-5)
    assert isinstance(fo.metrics(optimizer.opt_state)["step"], jax.Array)
    optimizer.opt_state = nnx.data(fo.tree.set(optimizer.opt_state, mu=jax.tree.map(jnp.zeros_like, mu)))
    optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx_grads(grads_at(0))))
    assert_close(
        nnx.to_pure_dict(fo.tree.get(optimizer.opt_state, "mu")), jax.tree.map(jnp.zeros_like, make_params())
    )


@pytest.mark.parametrize(
    "tx",
    [
        fo.adamw(0.1, weight_decay=0.1, mask={"*/b": False}),
        fo.partition({"first": fo.sgd(0.1), "rest": fo.adam(0.1)}, {"mlp/~/linear_0/*": "first", "**": "rest"}),
        fo.muon(0.1),
    ],
    ids=["mask", "partition", "muon"],
)
def test_haiku(tx):
    """Modules' names have slashes and a tilde in them; a step moves every param as with other names."""
    haiku = pytest.importorskip("haiku")
    x = jnp.ones((2, 3))
    net = haiku.without_apply_rng(haiku.transform(lambda x: haiku.nets.MLP([4, 2], name="mlp")(x)))
    params = net.init(jax.random.key(0), x)
    assert set(params) == {"mlp/~/linear_0", "mlp/~/linear_1"}
    grads = jax.grad(lambda params: jnp.mean((net.apply(params, x) - 1) ** 2))(params)
    updates, _ = tx.update(grads, tx.init(params), params)
    nested = {"mlp": {"~": {name.rsplit("/")[-1]: leaves for name, leaves in params.items()}}}
    nested_grads = {"mlp": {"~": {name.rsplit("/")[-1]: leaves for name, leaves in grads.items()}}}
    expected, _ = tx.update(nested_grads, tx.init(nested), nested)
    assert_close(updates, {f"mlp/~/{name}": leaves for name, leaves in expected["mlp"]["~"].items()})


@pytest.mark.parametrize(
    "tx", [fo.adam(0.3), fo.sgd(0.1, momentum=0.5), fo.schedule_free_sgd(0.3)], ids=["adam", "sgd", "schedule_free"]
)
def test_optimistix(tx):
    """Which stops where a step no longer changes the loss or the params."""
    optimistix = pytest.importorskip("optimistix")
    solver = optimistix.OptaxMinimiser(tx, rtol=1e-4, atol=1e-4)
    start = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}

    def loss(params, centre):
        return jnp.sum((params["a"] - centre) ** 2) + (params["b"] + 1) ** 2

    found = optimistix.minimise(loss, solver, start, args=0.5, max_steps=1000)
    assert_close(found.value, {"a": jnp.full(2, 0.5), "b": jnp.array(-1.0)}, atol=0.02)
