"""Inner products and the inverse-Hessian product of L-BFGS, on lists of leaves that together form one vector.

Quotients are computed from vectors scaled to a largest element of 1, so that no square under- or overflows, neither
in its value nor in its derivative. Derivatives treat the scales as constants, because they cancel.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.leaves import cast_like, widen
from ..core.norms import safe_sqrt
from ..core.sharding import vary_like

Vector = list[jax.Array]
"""Leaves that together form one vector; 16-bit leaves have been widened."""


class Pair(NamedTuple):
    """Numbers that describe a pair: a change s of the params and the change y of the gradient that came with it.

    `size_s`, `size_y`: the largest |element| of s and y. `cosine`: that of the angle between them.
    `weight`: 1 / ⟨s, y⟩. `scale`: ⟨s, y⟩ / ‖y‖². The last two are valid only where they are finite and the cosine is
    not 0.
    """

    size_s: jax.Array
    size_y: jax.Array
    cosine: jax.Array
    weight: jax.Array
    scale: jax.Array


def precision(*vectors: Vector) -> jnp.dtype:
    """Returns the dtype of inner products: real, the widest of all leaves, at least float32."""
    return jnp.result_type(jnp.float32, *(x.real.dtype for vector in vectors for x in vector))


def dot(x: Vector, y: Vector) -> jax.Array:
    """Returns ⟨x, y⟩ over all leaves, which is real even for complex leaves."""
    dtype = precision(x, y)
    terms = [jnp.sum((a.conj() * b).real).astype(dtype) for a, b in zip(x, y, strict=True)]
    return functools.reduce(jnp.add, terms, jnp.zeros([], dtype))


def largest(x: Vector) -> jax.Array:
    """Returns max |x| over all elements, 0 if there are none, NaN if any is NaN; constant in derivatives."""
    sizes = [jnp.max(jnp.abs(jax.lax.stop_gradient(a)), initial=0).astype(precision(x)) for a in x]
    return functools.reduce(jnp.maximum, sizes, jnp.zeros([], precision(x)))


def divided(x: Vector, scale: jax.Array) -> Vector:
    """Returns x / scale in the dtypes of x, or x if the scale is 0 or nearly 0."""
    scale = _nonzero(scale)
    return [cast_like(a / scale, a) for a in x]


def pair(s: Vector, y: Vector) -> Pair:
    """Computes the numbers of a pair of changes."""
    a, b = largest(s), largest(y)
    s, y = divided(s, a), divided(y, b)
    product, squares = dot(s, y), dot(y, y)
    length = safe_sqrt(dot(s, s)) * safe_sqrt(squares)
    cosine = product / jnp.where(length > 0, length, 1.0)
    there = product != 0
    weight = jnp.where(there, 1 / _nonzero(a) / _nonzero(b) / jnp.where(there, product, 1.0), 0.0)
    scale = _nonzero(a) / _nonzero(b) * product / jnp.where(squares > 0, squares, 1.0)
    return Pair(a, b, cosine, weight, scale)


def times_inverse_hessian(g: Vector, s: Vector, y: Vector, rho: jax.Array, newest: jax.Array, scaled: bool) -> Vector:
    """Computes H·g by the two-loop recursion: Nocedal & Wright 2006, algorithm 7.4.

    Args:
        s, y: the stored pairs, along a first axis that is a ring buffer; rho: their weights, 0 for pairs that do not
            count.
        newest: index of the newest pair in the ring.
        scaled: whether H starts as I times ⟨s, y⟩ / ‖y‖² of the newest pair, or times min(1, 1 / ‖g‖) before the
            first pair; as I if not.
    """
    m = len(rho)
    dtype = precision(g, s, y)
    rho = rho.astype(dtype)
    size = largest(g)
    q = divided(g, size)  # H is linear

    def at(memory, i):
        return [widen(jax.lax.dynamic_index_in_dim(x, i, keepdims=False)) for x in memory]

    def add(x, factor, z):
        return [cast_like(a + factor * b, a) for a, b in zip(x, z, strict=True)]

    def backward(k, carry):
        q, alphas = carry
        i = (newest - k) % m
        alpha = rho[i] * dot(at(s, i), q)
        return add(q, -alpha, at(y, i)), alphas.at[i].set(alpha)

    def forward(k, r):
        i = (newest + 1 + k) % m
        beta = rho[i] * dot(at(y, i), r)
        return add(r, alphas[i] - beta, at(s, i))

    length = safe_sqrt(dot(q, q))
    r, alphas = jax.lax.fori_loop(0, m, backward, vary_like((q, jnp.zeros(m, dtype)), (q, s, y, rho)))
    if scaled:
        latest_first = (newest - jnp.arange(m)) % m
        last = latest_first[jnp.argmax(rho[latest_first] != 0)]
        some = jnp.any(rho != 0)
        scale = jnp.where(some, pair(at(s, last), at(y, last)).scale, 1.0)
        r = [cast_like(scale * a, a) for a in r]
        size = jnp.where(some, size, jnp.minimum(size, 1 / jnp.where(length > 0, length, 1.0)))
    r = jax.lax.fori_loop(0, m, forward, r)
    return [cast_like(size * a, a) for a in r]


def _nonzero(x: jax.Array) -> jax.Array:
    """Returns x, or 1 where x is so small that a processor may treat it as 0."""
    return jnp.where(x < jnp.finfo(x.dtype).tiny, 1.0, x)
