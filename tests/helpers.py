"""A small tree of params, gradients for it, one training loop, and comparisons that name the leaf."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from functional_opt import apply_updates

compiled: list[str] = []
"""The names of all functions that JAX has compiled in this process. Its own caches forget some if there are many."""


@jax.monitoring.register_event_duration_secs_listener
def _note_compilation(event: str, _: float, fun_name: str = "", **__: Any) -> None:
    if event.endswith("backend_compile_duration"):
        compiled.append(fun_name)


SHAPES = {"dense": {"bias": (4,), "kernel": (4, 2)}, "scale": ()}  # 4: one row for each device
INT32_MAX = np.iinfo(np.int32).max


def _tree(leaf: Callable[[Any], Any]) -> Any:
    return jax.tree.map(leaf, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def make_params(dtype: Any = "float32") -> Any:
    """Params about 3, so that no weight comes near zero and relative errors mean something."""
    rng = np.random.default_rng(0)
    return _tree(lambda shape: jnp.asarray(3 + 0.3 * rng.standard_normal(shape), dtype))


def make_grads(steps: int, dtype: Any = "float32") -> Any:
    """Gradients of about 1 for a run of steps, stacked along a first axis; the same first ones for any number."""
    rng = np.random.default_rng(1)
    rows = [_tree(lambda shape: rng.standard_normal(shape)) for _ in range(steps)]
    return jax.tree.map(lambda *x: jnp.asarray(np.stack(x), dtype), *rows)


def at(tree: Any, i: int) -> Any:
    """Step i of a stacked tree."""
    return jax.tree.map(lambda x: x[i], tree)


def rosenbrock(params: Any) -> jax.Array:
    """Rosenbrock's valley in the params: every weight is to be the square of `scale`, and that 1."""
    x, ys = params["scale"], jnp.concatenate([y.ravel() for y in jax.tree.leaves(params["dense"])])
    return (1 - x) ** 2 + 100 * jnp.mean((ys - x**2) ** 2)


def without_bias(tree: Any) -> Any:
    """The tree with None in place of one leaf."""
    return {**tree, "dense": {**tree["dense"], "bias": None}}


def train(tx: Any, params: Any, grads: Any, pace: float = 1.0) -> tuple[Any, Any, Any]:
    """A scan over stacked gradients: params and updates after every step, stacked, and the last state.

    The params move by `pace` times the updates.
    """

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = apply_updates(params, jax.tree.map(lambda u: pace * u, updates))
        return (params, state), (params, updates)

    (_, state), (all_params, all_updates) = jax.lax.scan(step, (params, tx.init(params)), grads)
    return all_params, all_updates, state


train_jitted = jax.jit(train)
"""`train` with the transformation as an argument, its numbers traced."""


def train_compiled(tx: Any, params: Any, grads: Any, pace: float = 1.0) -> tuple[Any, Any, Any]:
    """`train` jitted, with the transformation closed over, as Optax is used."""
    return jax.jit(functools.partial(train, tx, pace=pace))(params, grads)


def train_eagerly(tx: Any, params: Any, grads: Any, steps: int = 1, **extra: Any) -> tuple[Any, Any]:
    """The last updates and state of a few steps at fixed params, without jit."""
    state = tx.init(params)
    for i in range(steps):
        updates, state = tx.update(at(grads, i), state, params, **extra)
    return updates, state


def structs(tree: Any) -> Any:
    """The tree's shapes and dtypes only."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


def assert_same_types(actual: Any, expected: Any) -> None:
    """Same structure, shapes, dtypes and weak types, so that one can take the other's place in a scan."""
    chex.assert_trees_all_equal_shapes_and_dtypes(structs(actual), structs(expected))
    weak = [jax.tree.map(lambda x: getattr(x, "weak_type", False), tree) for tree in (actual, expected)]
    chex.assert_trees_all_equal(*weak)


def assert_close(actual: Any, expected: Any, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Same structure, and leaves that agree; equal ones by default."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    numbers = [jax.tree.map(_numbers, tree) for tree in (actual, expected)]
    chex.assert_trees_all_close(*numbers, rtol=rtol, atol=atol)


def _numbers(x: Any) -> np.ndarray:
    """In float64 or complex128; of a key of jax.random its data."""
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64)


def assert_finite(tree: Any) -> None:
    """No leaf has an inf or NaN."""
    chex.assert_tree_all_finite(jax.tree.map(_numbers, tree))
