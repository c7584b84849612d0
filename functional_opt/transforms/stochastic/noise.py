"""add_noise: Gaussian noise that decays over time."""

import dataclasses
import zlib
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...core.leaves import Tree, is_nothing, map_leaves
from ...core.model_trees import names
from ...core.norms import safe_sqrt
from ...core.ranges import Convert, NonNegative
from ...core.slots import Counter, RandomKey
from ...core.transformation import GradientTransformation, increment, transformation, zero_count


def _to_key(name: str, x: Any) -> Any:
    dtype = getattr(x, "dtype", jnp.dtype(int) if isinstance(x, int) and not isinstance(x, bool) else None)
    if x is None or dtype is not None and any(jnp.issubdtype(dtype, d) for d in (jax.dtypes.prng_key, jnp.integer)):
        return x
    raise TypeError(f"{name} must be an integer or a key of jax.random, got {x!r}")


Key = Annotated[Any, Convert(_to_key, "seed or key of jax.random")]
"""A seed, or a key made by `jax.random.key` or `jax.random.PRNGKey`; None means the seed 0."""


def as_key(x: Any) -> jax.Array:
    """Converts any `Key` to a key as `jax.random.key` makes it."""
    x = 0 if x is None else x
    if _is_typed(x):
        return x
    return jax.random.wrap_key_data(x) if jnp.ndim(x) else jax.random.key(x)


def key_data(x: Any) -> jax.Array:
    """Returns the data of a `Key` for a state to keep: uint32, in a buffer of its own."""
    return jnp.copy(jax.random.key_data(as_key(x)))


def key_in(data: Any, like: Any) -> jax.Array:
    """Returns the key whose data a state holds, for the same generator as the `Key` that the state began with.

    If the state holds a key of `jax.random.key` instead, as in Optax and in earlier versions, returns it as it is.
    """
    return as_key(data) if _is_typed(data) else jax.random.wrap_key_data(data, impl=jax.random.key_impl(as_key(like)))


def stored_like(key: jax.Array, data: Any) -> jax.Array:
    """Returns a key in the form that the state uses: its data, or the key itself."""
    return key if _is_typed(data) else jax.random.key_data(key)


def path_numbers(tree: Tree) -> Tree:
    """Returns a number for each leaf, computed from its path, so that other leaves do not affect its random bits.

    The path is written as `jax.tree_util.keystr` writes paths of dicts and lists, so that a model's containers and
    boxes do not affect it either.
    """

    def written(path: str) -> str:
        return "".join(f"[{part}]" if part.isdigit() else f"[{part!r}]" for part in path.split("/") if part)

    _, treedef = jax.tree.flatten(tree, is_leaf=is_nothing)
    return treedef.unflatten([np.uint32(zlib.crc32(written(path).encode())) for path in names(tree, is_nothing)])


def _is_typed(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


class AddNoiseState(NamedTuple):
    """`count`: steps done. `rng_key`: the data (uint32) of the key for the next noise."""

    count: Counter
    rng_key: RandomKey


@transformation
class add_noise(GradientTransformation):
    """Adds Gaussian noise: u = g + σ·z, z standard normal, σ² = eta / (1 + t)^gamma after t steps.

    Args:
        eta: the variance at the first step, ≥ 0.
        gamma: how fast the variance decays, ≥ 0; 0.55 is the paper's.
        key: a key of `jax.random`, or an integer; the seed 0 if None.
        seed: another name for key.

    Raises ValueError if both key and seed are given, TypeError for a value that is neither a key nor an integer.

    Neelakantan et al. 2015, arXiv:1511.06807.

    >>> tx = add_noise(0.01, 0.55, key=0)
    >>> u, state = tx.update({"w": jnp.ones(3)}, tx.init({"w": jnp.ones(3)}))
    >>> [0.5 < x < 1.5 for x in u["w"].tolist()]
    [True, True, True]

    Draws the same numbers as Optax. Differs from it: the state holds the key as plain numbers, which can be saved;
    16-bit leaves get float32 noise; there is no warning without a key.
    """

    eta: NonNegative
    gamma: NonNegative
    key: Key = None
    seed: Key = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        if self.key is not None and self.seed is not None:
            raise ValueError("add_noise takes a key or a seed, not both")

    def init(self, params):
        return AddNoiseState(zero_count(), key_data(self._key))

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        key, now = jax.random.split(key_in(state.rng_key, self._key))
        leaves, treedef = jax.tree.flatten(updates, is_leaf=is_nothing)
        keys = treedef.unflatten(list(jax.random.key_data(jax.random.split(now, len(leaves)))))
        sigma = safe_sqrt(jnp.asarray(self.eta / jnp.asarray(t, float) ** self.gamma))

        def leaf(g, data):
            k = jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))
            return g + sigma * jax.random.normal(k, g.shape, g.dtype)

        updates = map_leaves(leaf, updates, read=(keys,), params=params, same_shape=False)
        return updates, AddNoiseState(t, stored_like(key, state.rng_key))

    @property
    def _key(self) -> Any:
        return self.seed if self.key is None else self.key
