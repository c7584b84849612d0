"""initial: the value that a slot or weight starts with."""

from typing import Any

import jax
import jax.numpy as jnp

from .variable import Variable


def initial(initializer: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns an array as the initializer says: "zeros", "ones", an array, or a function of `(shape, dtype)`.

    Raises ValueError for another string.

    >>> initial("ones", (2,), "float32").tolist(), initial(3, (2,), "float32").tolist()
    ([1.0, 1.0], [3.0, 3.0])
    """
    if isinstance(initializer, str):
        if initializer not in ("zeros", "ones"):
            raise ValueError(f"initializer must be 'zeros', 'ones', an array or a function, got {initializer!r}")
        return jnp.full(shape, float(initializer == "ones"), dtype)
    if callable(initializer) and not isinstance(initializer, Variable):
        return jnp.asarray(initializer(shape, dtype), dtype)
    return jnp.broadcast_to(jnp.array(initializer, dtype), shape)
