"""newton_schulz: an iteration of matrix products that turns matrices into nearly orthogonal ones."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from ...core import kernels
from ...core.norms import matrix_norm
from ...core.ranges import Convert
from ...core.sharding import sharded_by_compiler

Preconditioning = Literal["frobenius", "spectral", "aol", "schatten"]

POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


def _safe(rows: tuple) -> tuple:
    """Adds a margin for float arithmetic: X stays 1.01 times smaller than allowed, in its norm and at every step."""
    margins = [1.01**2] + [1.01] * (len(rows) - 1)
    return tuple((a / s, b / s**3, c / s**5) for s, (a, b, c) in zip(margins, rows, strict=True))


PRESETS = {
    "standard": (3.4445, -4.7750, 2.0315),
    "polar_express": _safe(POLAR_EXPRESS),
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}


def _coefficients(name: str, x: Any) -> Any:
    if isinstance(x, str):
        if x not in PRESETS:
            raise ValueError(f"{name} must be {' or '.join(map(repr, PRESETS))} or numbers, got {x!r}")
        return PRESETS[x]
    if hasattr(x, "dtype"):
        fits = x.ndim in (1, 2) and x.shape[-1] == 3
    else:
        x = tuple(tuple(row) if isinstance(row, Sequence) else row for row in x)
        fits = _is_row(x) or (len(x) > 0 and all(map(_is_row, x)))
    if not fits:
        raise ValueError(f"{name} must be three numbers, or three for each step, got {x!r}")
    return x


def _is_row(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 3 and not any(isinstance(number, tuple) for number in x)


Coefficients = Annotated[Any, Convert(_coefficients, "a preset's name, or rows of three numbers")]
"""Three numbers (a, b, c), one row of three for each step, or the name of a preset."""


WIDE = 2
"""The least ratio of columns to rows at which steps in pairs are faster."""


def coefficient_rows(ns_coeffs: Any, steps: int) -> Sequence[Any]:
    """Returns the coefficients of each step."""
    one_row = ns_coeffs.ndim == 1 if hasattr(ns_coeffs, "ndim") else _is_row(ns_coeffs)
    return [ns_coeffs] * steps if one_row else ns_coeffs


def newton_schulz(
    g: jax.Array,
    rows: Any,
    eps: Any,
    preconditioning: Preconditioning = "frobenius",
    eps_is_floor: bool = False,
    dtype: Any = None,
) -> jax.Array:
    """Runs the iteration of `orthogonalize` on one matrix or a stack of them, with products in `dtype`.

    A matrix whose long side is at least `WIDE` times the short one does two steps at a time on A = X·Xᵀ:
    X ← p₂(A₂)·p₁(A)·X with p(A) = a·I + b·A + c·A² for each step, and A₂ = p₁(A)·A·p₁(A). This replaces two products
    with X by three of the smaller A. Longer runs on A would save more, but rounding makes small eigenvalues of A
    negative, and each step magnifies them: with the preset "polar_express", two steps and then three in float16 err
    by up to the size of the result.

    Zhang, Amsel, Chen and Dao 2026, Gram Newton–Schulz, do two steps and then three.
    """
    local = partial(_newton_schulz, how=preconditioning, floor=eps_is_floor, dtype=dtype)
    return sharded_by_compiler(local, g, rows, eps)


def is_tall(x: jax.Array) -> bool:
    """Returns whether a matrix has more rows than columns."""
    return x.shape[-2] > x.shape[-1]


def _newton_schulz(g: jax.Array, rows: Any, eps: Any, how: Preconditioning, floor: bool, dtype: Any) -> jax.Array:
    tall = is_tall(g)
    x = g.mT if tall else g
    x = x / _size(x, eps, how, floor)
    if dtype is not None and not jnp.iscomplexobj(x):
        x = x.astype(dtype)
    in_pairs = x.shape[-1] >= WIDE * x.shape[-2]
    x = kernels.newton_schulz(x, rows, _in_pairs if in_pairs else _one_by_one, in_pairs).astype(g.dtype)
    return x.mT if tall else x


def _one_by_one(x: jax.Array, rows: Any) -> jax.Array:
    for a, b, c in rows:
        s = x @ x.mT.conj()
        t = (b * _wide(s) + c * _wide(s @ s)).astype(x.dtype)
        x = (a * _wide(x) + _wide(t @ x)).astype(x.dtype)
    return x


def _in_pairs(x: jax.Array, rows: Any) -> jax.Array:
    eye = jnp.eye(x.shape[-2], dtype=x.real.dtype)

    def polynomial(s, a, b, c):
        return (a * eye + b * _wide(s) + c * _wide(s @ s)).astype(s.dtype)

    for first, *second in (rows[i : i + 2] for i in range(0, len(rows), 2)):
        s = x @ x.mT.conj()
        q = polynomial(s, *first)
        for row in second:
            q = polynomial(q @ s @ q, *row) @ q
        x = q @ x
    return x


def _wide(x: jax.Array) -> jax.Array:
    """Returns 16-bit numbers as float32, so that no coefficient is rounded to 16 bits."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _size(x: jax.Array, eps: Any, how: Preconditioning, floor: bool) -> jax.Array:
    if how in ("frobenius", "spectral"):
        if how == "frobenius":
            norm = matrix_norm(x)
        else:
            norm = jnp.linalg.norm(x, ord=2, axis=(-2, -1), keepdims=True)
        return jnp.maximum(norm, eps) if floor else norm + eps
    s = x @ x.mT.conj()
    if how == "aol":
        return jnp.sqrt(jnp.maximum(jnp.sum(jnp.abs(s), axis=-1, keepdims=True), eps))
    return jnp.sqrt(jnp.maximum(matrix_norm(s), eps))
