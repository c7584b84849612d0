"""newton_schulz: the iterations for a stack of matrices, one thread for each, by the kernel."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import core

from .jax_internals import bind, is_alone, primitive
from .library import NEWTON_SCHULZ, enabled

LARGEST = 1 << 20
"""Elements of a matrix that fits in a thread's cache, with what else it needs."""


def newton_schulz(x: jax.Array, rows: Sequence[Any], pure: Callable) -> jax.Array:
    """`pure(x, rows)`: steps with coefficients `rows` on (..., n, m), n ≤ m, which the kernel may do."""
    if not isinstance(x, core.Tracer) or not _wins(x) or not enabled():
        return pure(x, rows)
    return carried(x, rows, pure)


def carried(x: jax.Array, rows: Sequence[Any], pure: Callable) -> jax.Array:
    """`pure(x, rows)` as the primitive, for which there is a kernel."""
    coefficients = jnp.stack([jnp.stack([jnp.asarray(c, jnp.float32) for c in row]) for row in rows])
    steps = len(rows)
    closed = jax.make_jaxpr(lambda c, x: pure(x, [tuple(c[i]) for i in range(steps)]))(coefficients, x)
    out = bind(newton_schulz_p, closed, coefficients, x)
    return pure(x, rows) if out is None else out[0]


def _wins(x: jax.Array) -> bool:
    """Whether every thread has a matrix, and it is not large: XLA divides single products among threads."""
    n, m = x.shape[-2:]
    return (
        is_alone(x) and x.dtype == jnp.float32 and 0 < n * m <= LARGEST and x.size // (n * m) >= (os.cpu_count() or 1)
    )


def _kernel(jaxpr):
    def run(*args):
        coefficients, x = args[-2:]
        out = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return [jax.ffi.ffi_call(NEWTON_SCHULZ, out, input_output_aliases={0: 0})(x, coefficients)]

    return run


newton_schulz_p = primitive(NEWTON_SCHULZ, _kernel)
