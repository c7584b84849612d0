"""Differential privacy: clips each example's gradient and adds noise to their mean."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import checked
from ..core.leaves import Tree, is_nothing, map_leaves, paths, widen, zip_leaves
from ..core.norms import abs_sq, safe_sqrt
from ..core.ranges import Decay, NonNegative
from ..core.schedule import Rate
from ..core.slots import RandomKey
from ..core.transformation import GradientTransformation, transformation
from ..transforms.combining.chain import chain, identity
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from ..transforms.scaling.moments import trace
from ..transforms.stochastic.noise import Key, key_data, key_in, stored_like


class DifferentiallyPrivateAggregateState(NamedTuple):
    """`rng_key`: the key data (uint32) for the next step's noise."""

    rng_key: RandomKey


@transformation
class differentially_private_aggregate(GradientTransformation):
    """The mean of clipped gradients, with noise: u = (Σᵢ gᵢ·min(1, l2_norm_clip / ‖gᵢ‖) + n) / B.

    n is normal with the standard deviation noise_multiplier · l2_norm_clip, ‖gᵢ‖ the norm over all leaves. The
    gradients have a leading axis with one entry for each of the B examples, as `jax.vmap(jax.grad(loss), (None, 0))`
    gives them; the updates do not.

    Args:
        l2_norm_clip: the largest norm of an example's gradient, ≥ 0.
        noise_multiplier: ≥ 0; 0 gives no privacy.
        key: a `jax.random` key, or an integer seed.
        seed: another name for key. Exactly one of the two must be given.

    Raises ValueError, naming the leaf, if its leading axis is missing or has another size than that of other leaves.

    Abadi et al. 2016, arXiv:1607.00133. Use a dedicated library to account for the privacy that is spent.

    >>> tx = differentially_private_aggregate(1.0, 0.0, key=0)
    >>> g = jnp.array([[3.0, 4.0], [0.3, 0.4]])
    >>> tx.update(g, tx.init(g[0]))[0].round(3).tolist()
    [0.45000001788139343, 0.6000000238418579]

    Differs from Optax: no clipped copy of every example's gradient is made; both parts of complex gradients get
    noise; a key or seed must be given; the state holds the key as plain numbers, which can be saved.
    """

    l2_norm_clip: NonNegative
    noise_multiplier: NonNegative
    key: Key = None
    seed: Key = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        if self.key is None and self.seed is None:
            raise ValueError("differentially_private_aggregate needs a key, such as key=0")
        if self.key is not None and self.seed is not None:
            raise ValueError("differentially_private_aggregate takes a key or a seed (its old name), got both")

    def init(self, params):
        return DifferentiallyPrivateAggregateState(key_data(self._key))

    def update(self, updates, state, params=None, **extra):
        sizes = _batch_sizes(updates)
        rows = () if params is None else zip_leaves((updates, params), ("updates", "params"), same_shape=False)[1]
        for i, (g, w) in enumerate(rows):
            if not is_nothing(g) and np.shape(g)[1:] != np.shape(w):
                raise ValueError(
                    f"updates{paths(updates, is_nothing)[i]} has shape {np.shape(g)}, but params has {np.shape(w)} "
                    "there: differentially_private_aggregate needs one gradient for each example, along the first "
                    "axis, as jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, batch) gives"
                )
        if not sizes:
            return updates, state
        squares = sum(_squares_by_example(widen(g)) for g in jax.tree.leaves(updates) if not is_nothing(g))
        norms = safe_sqrt(jnp.asarray(squares))
        factors = jnp.where(norms > self.l2_norm_clip, self.l2_norm_clip / norms, 1.0)
        key, *keys = jax.random.split(key_in(state.rng_key, self._key), 1 + len(sizes))
        leaves, treedef = jax.tree.flatten(updates)
        there = iter(keys)
        key_of = treedef.unflatten([None if is_nothing(g) else jax.random.key_data(next(there)) for g in leaves])

        def leaf(g, data):
            k = jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))
            clipped = jnp.tensordot(factors.astype(g.dtype), g, 1, precision="highest")
            noise = self.noise_multiplier * self.l2_norm_clip * _normal(k, clipped)
            return (clipped + noise) / len(factors)

        updates = map_leaves(leaf, updates, read=(key_of,), params=params, same_shape=False)
        return updates, DifferentiallyPrivateAggregateState(stored_like(key, state.rng_key))

    @property
    def _key(self) -> Any:
        return self.seed if self.key is None else self.key


def _batch_sizes(updates: Tree) -> list[int]:
    """Returns the length of the leading axis, once for each leaf."""
    leaves = jax.tree.leaves(updates, is_leaf=is_nothing)
    names = paths(updates, is_nothing)
    found = [(path, np.shape(g)) for path, g in zip(names, leaves, strict=True) if not is_nothing(g)]
    for path, shape in found:
        if not shape or shape[0] != (found[0][1] or (None,))[0] or shape[0] == 0:
            raise ValueError(
                f"updates{path} has shape {shape}; differentially_private_aggregate needs a leading axis "
                "with one gradient for each example, of the same length in all leaves"
            )
    return [shape[0] for _, shape in found]


def _squares_by_example(g: jax.Array) -> jax.Array:
    return jnp.sum(abs_sq(g), axis=tuple(range(1, g.ndim)))


def _normal(key: jax.Array, like: jax.Array) -> jax.Array:
    if not jnp.iscomplexobj(like):
        return jax.random.normal(key, like.shape, like.dtype)
    return 2**0.5 * jax.random.normal(key, like.shape, like.dtype)  # variance 1 in each part


@checked
def dpsgd(
    learning_rate: Rate,
    l2_norm_clip: NonNegative,
    noise_multiplier: NonNegative,
    seed: Any,
    momentum: Decay | None = None,
    nesterov: bool = False,
) -> chain:
    """DP-SGD: w ← w − learning_rate · u, u the noisy mean of clipped gradients, or its momentum.

    See `differentially_private_aggregate` for u, its arguments, and the leading axis that the gradients have.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.
        seed: a `jax.random` key, or an integer seed.
        momentum, nesterov: as in `trace`; None for no momentum.

    Abadi et al. 2016, arXiv:1607.00133.

    >>> dpsgd(0.1, l2_norm_clip=1.0, noise_multiplier=1.1, seed=0)
    chain(differentially_private_aggregate(1.0, 1.1, key=0), identity(), scale_by_learning_rate(0.1))
    """
    mean = differentially_private_aggregate(l2_norm_clip, noise_multiplier, seed)
    return chain(
        mean, identity() if momentum is None else trace(momentum, nesterov), scale_by_learning_rate(learning_rate)
    )
