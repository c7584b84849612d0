"""The products that L-BFGS is made of, on lists of leaves that together are one vector.

Every quotient is taken of vectors scaled to a largest element of 1, so that no square under- or overflows, neither
in its value nor in its derivative. The scales are constants to the derivative: they cancel.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.leaves import cast_like, widen
from ..core.norms import safe_sqrt

Vector = list[jax.Array]
"""Leaves that are one vector; 16-bit ones have been widened."""


class Pair(NamedTuple):
    """A change s of the params and the change y of the gradient that came with it, as far as numbers tell.

    `size_s`, `size_y`: their largest elements. `cosine`: of the angle between them. `weight`: 1 / ⟨s, y⟩, `scale`:
    ⟨s, y⟩ / ‖y‖², both only meant where they are finite and the cosine is not 0.
    """

    size_s: jax.Array
    size_y: jax.Array
    cosine: jax.Array
    weight: jax.Array
    scale: jax.Array


def precision(*vectors: Vector) -> jnp.dtype:
    """The dtype of inner products: real, the widest of all leaves, at least float32."""
    return jnp.result_type(jnp.float32, *(x.real.dtype for vector in vectors for x in vector))


def dot(x: Vector, y: Vector) -> jax.Array:
    """⟨x, y⟩ over all leaves, real also where they are complex."""
    dtype = precision(x, y)
    terms = [jnp.sum((a.conj() * b).real).astype(dtype) for a, b in zip(x, y, strict=True)]
    return functools.reduce(jnp.add, terms, jnp.zeros([], dtype))


def largest(x: Vector) -> jax.Array:
    """max |x| over all elements, 0 of none; NaN if there is one. A constant to the derivative."""
    sizes = [jnp.max(jnp.abs(jax.lax.stop_gradient(a)), initial=0).astype(precision(x)) for a in x]
    return functools.reduce(jnp.maximum, sizes, jnp.zeros([], precision(x)))


def divided(x: Vector, scale: jax.Array) -> Vector:
    """x / scale, in the dtypes of x; x where the scale is 0 or nearly."""
    scale = _nonzero(scale)
    return [cast_like(a / scale, a) for a in x]


def pair(s: Vector, y: Vector) -> Pair:
    """The numbers of a pair of changes."""
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
    """H·g by the two-loop recursion: Nocedal & Wright 2006, algorithm 7.4.

    Args:
        s, y: the memory, pairs along a first axis that is a ring; ρ: their weights, 0 for none.
        newest: where the ring ends.
        scaled: whether H starts as ⟨s, y⟩ / ‖y‖² of the newest pair times I, min(1, 1 / ‖g‖) where there is none.
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
    r, alphas = jax.lax.fori_loop(0, m, backward, (q, jnp.zeros(m, dtype)))
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
    """A scale, or 1 for one so small that a processor may take it for 0."""
    return jnp.where(x < jnp.finfo(x.dtype).tiny, 1.0, x)
