"""power_iteration, matrix_inverse_pth_root: compute the largest eigenvalue and the inverse roots of a matrix."""

from typing import Any

import jax
import jax.numpy as jnp

from .checks import checked
from .leaves import Tree, widen_tree
from .norms import global_norm, vdot
from .ranges import NonNegative, PositiveInt

HIGHEST = jax.lax.Precision.HIGHEST


@checked
def power_iteration(
    matrix: Any,
    *,
    v0: Tree = None,
    num_iters: PositiveInt = 100,
    error_tolerance: NonNegative = 1e-6,
    precision: Any = HIGHEST,
    key: jax.Array | None = None,
) -> tuple[jax.Array, Tree]:
    """Returns the eigenvalue of largest magnitude of a symmetric matrix, and its eigenvector.

    v ← A·v / ‖A·v‖, λ = ⟨v, A·v⟩. Stops when ‖A·v − λ·v‖ ≤ error_tolerance · |λ|. Computes in float32 or wider.

    Args:
        matrix: an array of shape (n, n), or a function v → A·v on trees like v0.
        v0: the start vector, required if matrix is a function. If None, uniform in [−1, 1].
        num_iters: the maximum number of products with the matrix after the first.
        precision: the precision of those products, if matrix is an array.
        key: the key for a random v0; `jax.random.key(0)` if None.

    Raises ValueError for a function without v0, and for an array that is not square.

    Golub & Van Loan 2013, Matrix Computations, section 8.2.

    >>> value, vector = power_iteration(jnp.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> round(float(value), 3), abs(vector).round(3).tolist()
    (3.0, [0.7070000171661377, 0.7070000171661377])
    """
    if callable(matrix):
        if v0 is None:
            raise ValueError("v0 must be given if matrix is a function: a tree like its argument")
        product = matrix
    else:
        matrix = _square(matrix)
        product = lambda v: jnp.matmul(matrix, v, precision=precision)  # noqa: E731
        if v0 is None:
            key = jax.random.key(0) if key is None else key
            v0 = jax.random.uniform(key, matrix.shape[:1], jnp.finfo(matrix.dtype).dtype, -1.0, 1.0)
            v0 = v0.astype(matrix.dtype)

    def ahead(i: Any, v: Tree) -> tuple:
        norm = global_norm(v)
        v = jax.tree.map(lambda x: (x / jnp.where(norm == 0, 1, norm)).astype(x.dtype), v)
        av = jax.tree.map(lambda y, x: jnp.asarray(y, x.dtype), product(v), v)
        return i, v, av, vdot(v, av)

    def goes_on(carry: tuple) -> jax.Array:
        i, v, av, value = carry
        error = global_norm(jax.tree.map(lambda y, x: y - value * x, av, v))
        return (i < num_iters) & (error > error_tolerance * jnp.abs(value))

    start = ahead(0, widen_tree(v0, "v0"))
    _, v, _, value = jax.lax.while_loop(goes_on, lambda carry: ahead(carry[0] + 1, carry[2]), start)
    return value, v


@checked
def matrix_inverse_pth_root(
    matrix: jax.Array,
    p: PositiveInt,
    num_iters: PositiveInt = 100,
    ridge_epsilon: NonNegative = 1e-6,
    error_tolerance: NonNegative = 1e-6,
    precision: Any = HIGHEST,
) -> tuple[jax.Array, jax.Array]:
    """Computes A^(−1/p) of a symmetric matrix without negative eigenvalues by products only, to suit accelerators.

    A ← A + ridge_epsilon·λ·I with λ its largest eigenvalue; M = z·A, X = z^(1/p)·I with z = (1 + p)/(2·‖A‖);
    then T = ((p + 1)·I − M)/p, X ← X·T, M ← Tᵖ·M until M is I, to error_tolerance in every element.

    Args:
        matrix: an array of shape (n, n).
        p: an integer ≥ 1, not traced.
        num_iters: the maximum number of steps. The iteration also stops when rounding errors move M away from I; X is
            then the best one found.
        precision: the precision of the products.

    Returns X and the largest element of |M − I|. X is NaN for a matrix of zeros. Raises ValueError for a matrix that
    is not square.

    Higham 2008, Functions of Matrices, eq. 7.18; Anil et al. 2021, arXiv:2002.09018.

    Differs from Optax 0.2.8, whose result is wrong if p is not a power of 2: for p = 6 by up to a third.

    >>> root, error = matrix_inverse_pth_root(jnp.diag(jnp.array([16.0, 1.0])), 4)
    >>> root.round(3).tolist(), bool(error < 1e-6)
    ([[0.5, 0.0], [0.0, 1.0]], True)
    """
    wide = _square(matrix)
    one = jnp.eye(len(wide), dtype=wide.dtype)
    largest, _ = power_iteration(wide, num_iters=100, error_tolerance=1e-6, precision=precision)
    a = wide + ridge_epsilon * jnp.abs(largest) * one
    z = (1 + p) / (2 * global_norm(a))

    def off(m: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs(m - one))

    def grows(m: jax.Array, older: jax.Array) -> jax.Array:
        return global_norm(m - one) > 1.2 * global_norm(older - one)

    def goes_on(carry: tuple) -> jax.Array:
        i, (_, m), (_, older) = carry
        return (i < num_iters) & (off(m) > error_tolerance) & ~grows(m, older)

    def step(carry: tuple) -> tuple:
        i, (x, m), _ = carry
        t = ((p + 1) * one - m) / p
        return i + 1, (_dot(x, t, precision), _dot(_power(t, p, precision), m, precision)), (x, m)

    start = 0, (one * z ** (1 / p), a * z), (one, jnp.full_like(one, jnp.inf))
    _, last, before = jax.lax.while_loop(goes_on, step, start)
    x, m = (jnp.where(grows(last[1], before[1]), old, new) for old, new in zip(before, last, strict=True))
    return x, off(m)


def _square(matrix: Any) -> jax.Array:
    wide: Any = widen_tree(jnp.asarray(matrix), "matrix")
    wide = wide if jnp.issubdtype(wide.dtype, jnp.inexact) else wide.astype(float)
    if wide.ndim != 2 or wide.shape[0] != wide.shape[1]:
        raise ValueError(f"matrix must have the shape (n, n), got {wide.shape}")
    return wide


def _dot(x: jax.Array, y: jax.Array, precision: Any) -> jax.Array:
    return jnp.matmul(x, y, precision=precision)


def _power(x: jax.Array, p: int, precision: Any) -> jax.Array:
    """Returns xᵖ by repeated squaring."""
    if p == 1:
        return x
    half = _power(x, p // 2, precision)
    square = _dot(half, half, precision)
    return _dot(square, x, precision) if p % 2 else square
