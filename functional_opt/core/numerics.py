"""safe_norm, safe_root_mean_squares, safe_increment: norms with finite derivatives, and a count without overflow."""

from typing import Any

import jax
import jax.numpy as jnp

from .leaves import cast_like, widen
from .norms import abs_sq, safe_sqrt


def safe_increment(count: Any) -> jax.Array:
    """Returns `count + 1` in the dtype of the count; stops at the largest number of that dtype.

    >>> int(safe_increment(jnp.int8(126))), int(safe_increment(jnp.int8(127)))
    (127, 127)
    """
    count = jnp.asarray(count)
    if jnp.issubdtype(count.dtype, jnp.integer):
        largest = jnp.iinfo(count.dtype).max
    elif jnp.issubdtype(count.dtype, jnp.floating):
        largest = jnp.finfo(count.dtype).max
    else:
        raise TypeError(f"count must be an integer or a float, got {count.dtype}")
    return jnp.where(count < count.dtype.type(largest), count + jnp.ones_like(count), count)


safe_int32_increment = safe_increment
"""Optax's old name for `safe_increment`."""


def safe_norm(x: Any, min_norm: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> jax.Array:
    """Returns max(‖x‖, min_norm), with derivative 0 where the result is `min_norm`, even at x = 0.

    Args:
        x: an array; 16-bit arrays are summed in float32.
        min_norm: the smallest result.
        ord, axis, keepdims: as in `jnp.linalg.norm`.

    >>> float(safe_norm(jnp.array([3.0, 4.0]), 0.0)), jax.grad(safe_norm)(jnp.zeros(2), 0.0).tolist()
    (5.0, [0.0, 0.0])
    """
    x = jnp.asarray(x)
    wide = widen(x)
    small = jnp.linalg.norm(jax.lax.stop_gradient(wide), ord, axis, keepdims=True) <= min_norm
    norm = jnp.linalg.norm(jnp.where(small, jnp.ones_like(wide), wide), ord, axis, keepdims)
    return cast_like(jnp.where(small.reshape(norm.shape), min_norm, norm), x.real)


def safe_root_mean_squares(x: Any, min_rms: Any) -> jax.Array:
    """Returns max(√(mean |x|²), min_rms), with derivative 0 where the result is `min_rms`; sums in float32.

    >>> float(safe_root_mean_squares(jnp.array([3.0, -3.0]), 0.0))
    3.0
    """
    x = jnp.asarray(x)
    rms = safe_sqrt(jnp.mean(abs_sq(widen(x))))
    return cast_like(jnp.where(rms <= min_rms, min_rms, rms), x.real)
