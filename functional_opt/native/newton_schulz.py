"""newton_schulz: runs the iteration on a stack of matrices in a kernel, with one thread for each matrix."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import core

from .jax_internals import bind, is_alone, primitive
from .library import NEWTON_SCHULZ, enabled

LARGEST = 1 << 20
"""The most elements of a matrix that fits in a thread's cache together with its intermediate results."""


def newton_schulz(x: jax.Array, rows: Sequence[Any], pure: Callable, in_pairs: bool) -> jax.Array:
    """Returns `pure(x, rows)`: steps with coefficients `rows` on (..., n, m), n ≤ m, which the kernel may compute."""
    if not isinstance(x, core.Tracer) or not _wins(x) or not enabled():
        return pure(x, rows)
    return carried(x, rows, pure, in_pairs)


def carried(x: jax.Array, rows: Sequence[Any], pure: Callable, in_pairs: bool) -> jax.Array:
    """Returns `pure(x, rows)` as the primitive, for which there is a kernel."""
    coefficients = jnp.stack([jnp.stack([jnp.asarray(c, jnp.float32) for c in row]) for row in rows])
    steps = len(rows)
    closed = jax.make_jaxpr(lambda c, x: pure(x, [tuple(c[i]) for i in range(steps)]))(coefficients, x)
    out = bind(newton_schulz_p, closed, coefficients, x, in_pairs=in_pairs)
    return pure(x, rows) if out is None else out[0]


def _wins(x: jax.Array) -> bool:
    """Returns whether every thread gets a matrix, and a small one; XLA splits single products among threads."""
    n, m = x.shape[-2:]
    return (
        is_alone(x) and x.dtype == jnp.float32 and 0 < n * m <= LARGEST and x.size // (n * m) >= (os.cpu_count() or 1)
    )


def _kernel(jaxpr, in_pairs):
    def run(*args):
        coefficients, x = args[-2:]
        out = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return [jax.ffi.ffi_call(NEWTON_SCHULZ, out, input_output_aliases={0: 0})(x, coefficients, in_pairs=in_pairs)]

    return run


newton_schulz_p = primitive(NEWTON_SCHULZ, _kernel)
