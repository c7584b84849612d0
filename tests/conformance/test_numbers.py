"""What the optimizers compute: the paper's formula in float64, Optax's numbers, the way down."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_opt import apply_updates

from ..helpers import assert_close, at, make_grads, make_params, rosenbrock, train_compiled
from .case import Case, with_a_loss
from .cases import CASES, OPTIMIZERS, PLAIN, each_optimizer, each_plain_case
from .cases_free import knows_the_loss
from .cases_linesearch import IN_FLOAT64

STEPS = {"float32": 500, "float64": 100}


@functools.partial(jax.jit, static_argnums=0)
def train_on(tx: Any, params: Any, grads: Any, curvature: Any, pace: float) -> tuple[Any, Any]:
    """Params and updates after every step; the gradients of a quadratic are added to those of `grads`."""

    def step(carry, g):
        params, state = carry
        g = jax.tree.map(lambda g, h, w: g + h * w, g, curvature, params)
        updates, state = tx.update(g, state, params)
        params = apply_updates(params, jax.tree.map(lambda u: pace * u, updates))
        return (params, state), (params, updates)

    return jax.lax.scan(step, (params, tx.init(params)), grads)[1]


@functools.cache
def run(case: Case, dtype: str = "float32") -> tuple[Any, Any]:
    """Params and updates on given gradients; in the program in which `descends` has gradients of its own."""
    with jax.enable_x64(dtype == "float64"):
        params, grads = in_dtype(dtype, (make_params(), make_grads(STEPS[dtype])))
        results = train_on(case.tx(), params, grads, jax.tree.map(np.zeros_like, params), case.pace)
    return jax.tree.map(np.asarray, results)


def in_dtype(dtype: str, tree: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x, dtype), tree)


def by_the_paper(case: Case, steps: int):
    """The params after every step, from the reference in float64."""

    def leaf(w, g):
        return np.stack(list(case.reference(w, g, **case.args)))

    params, grads = in_dtype("float64", (make_params(), make_grads(steps)))
    if not hasattr(case.reference, "joint"):
        return jax.tree.map(leaf, params, grads)
    leaves, treedef = jax.tree.flatten(params)
    w = np.concatenate([x.ravel() for x in leaves])
    g = np.concatenate([x.reshape(steps, -1) for x in jax.tree.leaves(grads)], axis=1)
    parts = np.split(leaf(w, g), np.cumsum([x.size for x in leaves])[:-1], axis=1)
    return treedef.unflatten([y.reshape(steps, *x.shape) for x, y in zip(leaves, parts, strict=True)])


def test_every_optimizer_has_a_reference():
    assert [case.name for case in OPTIMIZERS if case.reference is None] == []


KEEP_NORMS = ("adamh", "muonh")  # of matrices: minima of another norm are out of reach (see test_hyperball.py)


@each_optimizer
def test_float32_follows_the_paper(case):
    params, _ = run(case)
    rtol = 5e-5 if case.name.startswith("dadapt") else 1e-5  # its d is a ratio to 1 − β3, 0.0005
    atol = 1e-6 if case.name in KEEP_NORMS else 0  # elements of a matrix that turns pass through 0
    assert_close(jax.tree.map(lambda w: w[:50], params), by_the_paper(case, 50), rtol=rtol, atol=atol)


@pytest.mark.parametrize("case", OPTIMIZERS + IN_FLOAT64, ids=repr)
def test_float64_is_the_paper(case):
    params, _ = run(case, "float64")
    rtol = 1e-11 if case.name == "lbfgs-identity" else 1e-12  # H has negative eigenvalues, and errors grow
    with jax.enable_x64(True):  # where jax.random has other numbers
        expected = by_the_paper(case, 10)
    assert_close(jax.tree.map(lambda w: w[:10], params), expected, rtol=rtol)


def loses_digits(case: Case):
    """Those whose Optax takes small differences or long sums, to 1e-4 in float32: compared in float64."""
    names = (
        "schedule_free",
        "madgrad",
        "radam",
        "momo",
        "cocob",
        "adopt",
        "dog",
        "dowg",
        "dadapt",
        "simplified_adem",
        "sam",
    )
    return case.name.removeprefix("scale_by_").startswith(names)


@pytest.mark.parametrize("case", [case for case in CASES if case.peer and loses_digits(case)], ids=repr)
def test_optax_parity_in_float64(case):
    params, updates = run(case, "float64")
    peer_params, peer_updates = run_of_peer(case, "float64")
    assert_close(params, peer_params, rtol=5e-8)  # Optax's warm-up is in float32 even so
    assert_close(updates, peer_updates, rtol=1e-6, atol=5e-8)


def run_of_peer(case: Case, dtype: str) -> tuple[Any, Any]:
    with jax.enable_x64(dtype == "float64"):
        params, grads = in_dtype(dtype, (make_params(), make_grads(100)))
        results = train_compiled(case.peer(**case.args), params, grads, case.pace)[:2]
    return jax.tree.map(np.asarray, results)


@pytest.mark.parametrize("case", [case for case in CASES if case.peer and not loses_digits(case)], ids=repr)
def test_optax_parity(case):
    params, updates = jax.tree.map(lambda x: x[:100], run(case))
    peer_params, peer_updates = run_of_peer(case, "float32")
    assert_close(params, peer_params, rtol=1e-6, atol=2e-7)  # Muon's pairs of steps round in another order
    assert_close(updates, peer_updates, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("case", [case for case in OPTIMIZERS if case.name not in KEEP_NORMS], ids=repr)
def test_descends_a_quadratic(case):
    """From a distance of 3 in every weight, with curvatures from 1/2 to 2, to a hundredth of the loss."""
    start, grads = in_dtype("float32", (make_params(), jax.tree.map(np.zeros_like, make_grads(STEPS["float32"]))))
    curvature = jax.tree.map(lambda w: np.linspace(0.5, 2.0, w.size, dtype=w.dtype).reshape(w.shape), start)

    def loss(params):
        return sum(np.sum(h * w**2) for h, w in zip(*map(jax.tree.leaves, (curvature, params)), strict=True))

    params, _ = train_on(case.tx(), start, grads, jax.tree.map(lambda h: 2 * h, curvature), case.pace)
    assert loss(at(params, -1)) < 0.01 * loss(start)


@pytest.mark.parametrize(
    "case", [c for c in OPTIMIZERS if c in PLAIN and c.name not in ("sam", *KEEP_NORMS)], ids=repr
)
def test_comes_down_rosenbrocks_valley(case):
    """To a hundredth of the loss, at one of seven scales of the rate: 400 times as steep across as along.

    With a warm-up or without (RAdam's first steps are the gradient itself). A factor parts what SAM does in two
    steps, so that test_sam.py takes it down.
    """
    tx, start = case.tx(), jax.tree.map(lambda w: jnp.full(w.shape, -1.0), make_params())
    tx = tx.inner if isinstance(tx, with_a_loss | knows_the_loss) else tx  # there the loss is made up

    def descend(scale, warmup):
        def step(i, carry):
            params, state = carry
            value, grads = jax.value_and_grad(rosenbrock)(params)
            updates, state = tx.update(grads, state, params, value=value)
            factor = scale * jnp.minimum(1, (i + 1) / warmup) * (1 - i / 2000)
            return apply_updates(params, jax.tree.map(lambda u: factor * u, updates)), state

        return rosenbrock(jax.lax.fori_loop(0, 2000, step, (start, tx.init(start)))[0])

    scales, warmups = jnp.meshgrid(jnp.array([10.0, 3.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4]), jnp.array([1.0, 100.0]))
    losses = jax.jit(jax.vmap(descend))(scales.ravel(), warmups.ravel())
    assert jnp.nanmin(losses) < 0.01 * rosenbrock(start)


@each_plain_case
def test_eager_is_jitted(case):
    """To 5e-5: one ulp of b2ᵗ = 0.999 is 6e-5 of 1 − b2ᵗ, and eager and fused powers differ by one.

    And to an ulp of the params, 2e-7, where the updates are the new params less the old.
    """
    tx, grads, (params, updates) = case.tx(), make_grads(100), run(case)
    current, state = make_params(), tx.init(make_params())
    for i in range(3):
        u, state = tx.update(at(grads, i), state, current)
        assert_close(u, at(updates, i), rtol=5e-5, atol=3e-7)
        current = jax.tree.map(jnp.asarray, at(params, i))
