"""A ring buffer of the last numbers of a series, and their quantiles."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...core.leaves import cast_like
from ...core.ranges import Scalar
from ...core.slots import Counter, Number
from ...core.transformation import increment, zero_count


class Rolling(NamedTuple):
    """`count`: numbers recorded so far. `history`: the last ones, number i at i mod window; else 0."""

    count: Counter
    history: Number


def rolling(window: int) -> Rolling:
    """Returns an empty buffer."""
    return Rolling(zero_count(), jnp.zeros(window))


def record(past: Rolling, x: jax.Array) -> Rolling:
    """Returns the buffer with one more number, or unchanged if the number is not finite."""
    seen, history = jnp.isfinite(x), jnp.asarray(past.history)
    place = past.count % history.size
    history = history.at[place].set(cast_like(jnp.where(seen, x, history[place]), history))
    return Rolling(jnp.where(seen, increment(past.count), past.count), history)


def quantile(past: Rolling, q: Scalar) -> jax.Array:
    """Returns the q-quantile of the recorded numbers, interpolated linearly as in NumPy; 0 if there are none."""
    window = past.history.size
    n = jnp.minimum(past.count, window)
    ranked = jnp.sort(jnp.where(jnp.arange(window) < n, past.history, jnp.inf))
    place = q * jnp.maximum(n - 1, 0)
    below = jnp.floor(place).astype(jnp.int32)
    low, high = ranked[below], ranked[jnp.minimum(below + 1, jnp.maximum(n - 1, 0))]
    return jnp.where(n > 0, low + (place - below) * (high - low), 0.0)
