"""stochastic_round: bfloat16 params, rounded up or down at random."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...core.leaves import is_nothing, widen, widen_params, widen_tree
from ...core.slots import Counter, States
from ...core.transformation import (
    GradientTransformation,
    Transformation,
    increment,
    needs_params,
    transformation,
    zero_count,
)
from ..stochastic.noise import Key, as_key


class StochasticRoundState(NamedTuple):
    """`count`: steps done. `inner_state`: the inner state."""

    count: Counter
    inner_state: States


@transformation
class stochastic_round(GradientTransformation):
    """Rounds bfloat16 params up or down at random, without bias: E[bf16(w + u)] = w + u.

    With rounding to the nearest, a weight does not move when its steps are below 1/512 of it. The inner optimizer
    works in float32. Leaves of other dtypes are updated as usual.

    Args:
        inner: the optimizer.
        key: a seed, or a key of `jax.random`; the seed 0 if None. The random bits depend on it, the step, the
            position of the leaf in the tree and that of the element in the leaf, so they are the same on any number
            of devices.

    It must be the outermost transformation, because params are float32 inside a `chain`. Its updates of bfloat16
    leaves are float32, because the difference of two bfloat16 numbers may need more bits; `apply_updates` gives
    exactly the rounded params.

    Raises ValueError without params.

    Zamirai, Zhang, Aberger & De Sa 2020, arXiv:2010.06192.

    >>> from functional_opt import apply_updates, sgd
    >>> tx, w = stochastic_round(sgd(1e-3)), jnp.ones(1000, "bfloat16")
    >>> u, state = tx.update(jnp.ones(1000), tx.init(w), w)
    >>> w = apply_updates(w, u)
    >>> sorted(set(w.tolist())), 0.998 < float(w.astype("float32").mean()) < 1
    ([0.99609375, 1.0], True)
    """

    inner: Transformation
    key: Key = None

    def init(self, params):
        return StochasticRoundState(zero_count(), self.inner.init(params))

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        moves, inner_state = self.inner.update(
            widen_tree(updates, "updates"), state.inner_state, widen_params(params), **extra
        )
        leaves, treedef = jax.tree.flatten(moves, is_leaf=is_nothing)
        key = jax.random.fold_in(as_key(self.key), state.count)
        rounded = [
            u if is_nothing(u) or jnp.result_type(w) != jnp.bfloat16 else _step(w, u, jax.random.fold_in(key, i))
            for i, (u, w) in enumerate(zip(leaves, treedef.flatten_up_to(params), strict=True))
        ]
        return treedef.unflatten(rounded), StochasticRoundState(increment(state.count), inner_state)


def _step(w: jax.Array, u: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the step to w + u, rounded by adding noise to the lower 16 bits of a float32 and dropping them."""
    exact = jnp.asarray(widen(w) + u, jnp.float32)
    noise = jax.random.bits(key, exact.shape, jnp.uint16).astype(jnp.uint32)
    upper = (lax.bitcast_convert_type(exact, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
    rounded = lax.bitcast_convert_type(upper, jnp.float32)
    return jnp.where(jnp.isfinite(exact), rounded, exact) - widen(w)
