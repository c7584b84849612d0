"""The last numbers of a series, in a ring buffer, and their quantiles."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...core.leaves import cast_like
from ...core.ranges import Scalar
from ...core.slots import Counter, Number
from ...core.transformation import increment, zero_count


class Rolling(NamedTuple):
    """`count`: numbers recorded so far. `history`: the last of them, number i at i mod window, and zeros."""

    count: Counter
    history: Number


def rolling(window: int) -> Rolling:
    """Without a number."""
    return Rolling(zero_count(), jnp.zeros(window))


def record(past: Rolling, x: jax.Array) -> Rolling:
    """With one more number, unless that is not finite."""
    seen, history = jnp.isfinite(x), jnp.asarray(past.history)
    place = past.count % history.size
    history = history.at[place].set(cast_like(jnp.where(seen, x, history[place]), history))
    return Rolling(jnp.where(seen, increment(past.count), past.count), history)


def quantile(past: Rolling, q: Scalar) -> jax.Array:
    """The q-quantile of the numbers there are, linear between two of them as in NumPy; 0 where there are none."""
    window = past.history.size
    n = jnp.minimum(past.count, window)
    ranked = jnp.sort(jnp.where(jnp.arange(window) < n, past.history, jnp.inf))
    place = q * jnp.maximum(n - 1, 0)
    below = jnp.floor(place).astype(jnp.int32)
    low, high = ranked[below], ranked[jnp.minimum(below + 1, jnp.maximum(n - 1, 0))]
    return jnp.where(n > 0, low + (place - below) * (high - low), 0.0)
