"""KL-Shampoo: Kronecker factors of the gradients' second moment that are closest to it in KL divergence."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import Tree, as_updates, map_leaves, widen_tree, zeros_like, zip_leaves
from ..core.norms import abs_sq, safe_sqrt
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative, Positive, PositiveInt
from ..core.schedule import Rate
from ..core.slots import Counter, Exact, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..placement.like import keep_placement
from ..placement.owners import Distributed, Owners
from ..transforms.combining.chain import chain
from ..transforms.matrices.kronecker import (
    absent,
    eigenvectors,
    factors_and_bases,
    gram,
    map_factors,
    mean_factor,
    slots_by_axis,
    sum_of_slices,
    turn,
)
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate


class ScaleByKLShampooState(NamedTuple):
    """`count`: steps done. `mu`: running mean of g. `nu`: that of |g|², for leaves without factors.

    `gg[k]`, `q[k]`, `eigenvalues[k]`: for every leaf, the factor of axis k, its eigenvectors in columns, and its
    eigenvalues. A slot that a leaf does not use is zeros of shape (1,).
    """

    count: Counter
    mu: Signed
    nu: Unsigned
    gg: Exact
    q: Exact
    eigenvalues: Exact


@transformation
class scale_by_kl_shampoo(GradientTransformation):
    """KL-Shampoo's direction: m ← b1·m + (1 − b1)·g; u = L^(−1/2)·m·R^(−1/2), with the L and R of the last step.

    For a gradient of n rows and k columns, L ← b2·L + (1 − b2)·g·R⁻¹·gᴴ / k and R ← b2·R + (1 − b2)·gᴴ·L⁻¹·g / n,
    both from the factors before. They minimize the KL divergence of a normal distribution with the covariance
    L ⊗ R from one with that of the gradients. A leaf with more axes has a factor for each.

    The inverses use L ≈ Q_L·diag(λ_L)·Q_Lᴴ. λ_L is a running mean, too, at every step, of the diagonal that the new
    term of L has in the basis Q_L. Every precondition_frequency steps Q_L is refreshed by a step of power iteration,
    Q_L ← qr(L·Q_L). So u = Q_L·(Q_Lᴴ·m·Q_R / (√(λ_L·λ_Rᵀ) + eps))·Q_Rᴴ.

    The first step only computes the bases, by eigh, and its update is 0. Leaves with fewer than two axes longer than
    1 have no factors: u = m / (√v + eps), v ← b2·v + (1 − b2)·|g|².

    Args:
        b1, b2: decay rates of m and of the factors, in [0, 1).
        eps: added to the root, ≥ 0.
        precondition_frequency: number of steps from one refresh to the next, ≥ 1; other steps skip the work.
        max_precond_dim: an axis longer than this is not rotated; its factor is diagonal.
        initial_eigenvalue: what all eigenvalues are at first, > 0.
        max_scale: 1/√λ is at most max(10, min(n, max_scale)) for an axis of length n, > 0.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params. Factors are
            at least float32.
        distributed: as in `orthogonalize`, for all products and decompositions. Owners keep L, R and Q split over all
            devices where these divide them.

    Lin et al. 2025, arXiv:2509.03378; the first step, the start and the bound of the eigenvalues as in the authors'
    code (yorkerlin/KL-Methods). That code has no rule for vectors. It updates the eigenvalues of three axes one
    after the other; here all are updated from those of the step before. No derivative is taken through Q.

    >>> tx, g = scale_by_kl_shampoo(b1=0.0, b2=0.5), jnp.array([[2.0, 1.0], [0.0, 1.0]])
    >>> state = tx.init(g)
    >>> for _ in range(30):
    ...     u, state = tx.update(g, state)
    >>> bool(jnp.allclose(u @ u.T, 2 * jnp.eye(2), atol=0.01))  # elements of about 1
    True
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.98
    eps: NonNegative = 1e-8
    precondition_frequency: PositiveInt = 10
    max_precond_dim: Static[PositiveInt] = 10000
    initial_eigenvalue: Positive = 0.1
    max_scale: Positive = 4000.0
    state_dtype: Static[DType | None] = None
    distributed: Static[Distributed | None] = dataclasses.field(default=None, kw_only=True)

    def init(self, params):
        nu = zeros_like(params, self.state_dtype, real=True)
        nu = jax.tree.map(lambda v: absent(v) if factored_axes(v.shape) else v, nu)
        factors = factor_slots(params, self.max_precond_dim, self.initial_eigenvalue, self.distributed)
        return ScaleByKLShampooState(zero_count(), zeros_like(params, self.state_dtype), nu, *factors)

    def update(self, updates, state, params=None, **extra):
        zip_leaves((updates, state.mu), ("updates", "the optimizer state"))
        first, owners = state.count == 0, Owners(self.distributed)
        g = widen_tree(updates, "updates")

        def means(g, m, v):
            m_new = self.b1 * m + (1 - self.b1) * g
            v_new = v if factored_axes(g.shape) else self.b2 * v + (1 - self.b2) * abs_sq(g)
            return jnp.where(first, 0, m_new), jnp.where(first, m, m_new), jnp.where(first, v, v_new)

        def direction(m, v, q, eigenvalues, eps):
            if axes := factored_axes(m.shape):
                return (turn(turn(m, q) / (roots(eigenvalues, axes, m.ndim) + eps), q, back=True),)
            root = safe_sqrt(v) + eps
            return (jnp.where(root > 0, m / jnp.where(root > 0, root, 1), 0),)

        m, mu, nu = map_leaves(means, g, state.mu, state.nu, same_shape=False)
        (u,) = map_factors(direction, (m, nu), (state.q, state.eigenvalues), (0,), (self.eps,), owners)
        gg, eigenvalues = kl_means(g, state, self.b2, self.max_scale, owners)
        q = jax.lax.cond(
            state.count % self.precondition_frequency == 0,
            lambda gg, q: map_factors(_refreshed, (g,), (gg, q), (2,), (first,), Owners(self.distributed))[0],
            lambda gg, q: q,
            *(gg, state.q),
        )
        new = as_updates(u, updates, params)
        kept = keep_placement((gg, q, eigenvalues), (state.gg, state.q, state.eigenvalues))
        return keep_placement(new, updates), ScaleByKLShampooState(increment(state.count), mu, nu, *kept)


def factored_axes(shape: Sequence[int]) -> list[int]:
    """Returns the axes of a leaf that have factors: those longer than 1, if there are two or more."""
    axes = [k for k, n in enumerate(shape) if n != 1]
    return axes if len(axes) > 1 and math.prod(shape) else []


def factor_slots(params: Tree, max_precond_dim: int, start: Any, distributed: Distributed | None) -> Any:
    """Returns the slots of the factors, which start at 0, of their eigenvectors and of their eigenvalues."""

    def has_matrix(shape, k):
        return k in factored_axes(shape) and shape[k] <= max_precond_dim

    def numbers(x, k):
        return sum_of_slices(x, k).real + start if k in factored_axes(x.shape) else None

    matrices = factors_and_bases(params, has_matrix, distributed)
    return *matrices, slots_by_axis(params, numbers, distributed=distributed)


def roots(eigenvalues: Sequence[jax.Array], axes: Sequence[int], ndim: int) -> Any:
    """Returns the products of the roots of the axes' eigenvalues, in a shape for leaves of so many axes."""
    return math.prod(jnp.sqrt(eigenvalues[k]).reshape([-1 if j == k else 1 for j in range(ndim)]) for k in axes)


def kl_means(g: Tree, state: Any, beta: Any, max_scale: Any, owners: Owners) -> tuple[tuple, tuple]:
    """Returns the factors of all leaves after a step, and their eigenvalues."""
    known, numbers = (state.q, state.eigenvalues), (state.count == 0, beta, max_scale)
    terms, eigenvalues = map_factors(_terms, (g,), known, (1, 2), numbers, owners)

    def mean(g, *factors_and_terms):
        half = len(factors_and_terms) // 2
        pairs = zip(factors_and_terms[:half], factors_and_terms[half:], strict=True)
        return g, *(mean_factor(gg, term, beta) for gg, term in pairs)

    return map_leaves(mean, g, *state.gg, read=terms, same_shape=False)[1:] if state.gg else (), eigenvalues


def _terms(g: jax.Array, q: list, eigenvalues: list, first: Any, beta: Any, max_scale: Any) -> tuple[list, list]:
    """Returns the new terms of a leaf's factors, from its gradient as the other factors whiten it, and all λ."""
    axes, terms, new = factored_axes(g.shape), list(q), list(eigenvalues)
    known = [jnp.where(first, 1, x) for x in eigenvalues]  # at the first step nothing is known
    for k in axes:
        others, n = [j for j in axes if j != k], g.shape[k]
        x = turn(g, q, axes=others) / roots(known, others, g.ndim)
        if q[k].ndim > 1:
            terms[k] = gram(x, k) * (n / g.size)
        now = sum_of_slices(abs_sq(turn(x, q, axes=[k])), k) * (n / g.size)
        least = 1 / jnp.maximum(10, jnp.minimum(n, max_scale)) ** 2
        mean = jnp.maximum(beta * eigenvalues[k] + (1 - beta) * now, least)
        new[k] = jnp.where(first | ~jnp.all(jnp.isfinite(mean)), eigenvalues[k], mean).astype(eigenvalues[k].dtype)
    return terms, new


def new_basis(gg: jax.Array, q: jax.Array, first: Any) -> jax.Array:
    """Returns the eigenvectors of a factor, or after the first step those that a step of power iteration gives."""
    gg = jax.lax.stop_gradient(gg)
    return jax.lax.cond(first, lambda a, q: eigenvectors(a), lambda a, q: jnp.linalg.qr(a @ q)[0], gg, q)


def _refreshed(g: jax.Array, gg: list, q: list, first: Any) -> tuple[list]:
    return ([new_basis(a, old, first) if old.ndim > 1 else old for a, old in zip(gg, q, strict=True)],)


@checked
def kl_shampoo(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.98,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.01,
    mask: Mask | None = None,
    precondition_frequency: PositiveInt = 10,
    max_precond_dim: PositiveInt = 10000,
    *,
    initial_eigenvalue: Positive = 0.1,
    max_scale: Positive = 4000.0,
    state_dtype: DType | None = None,
    distributed: Distributed | None = None,
) -> chain:
    """KL-Shampoo: w ← w − learning_rate · (u + weight_decay · w). See `scale_by_kl_shampoo` for u.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.
        weight_decay, mask: as in `add_decayed_weights`; weights decay at the first step too.

    Lin et al. 2025, arXiv:2509.03378.

    >>> kl_shampoo(1e-3)
    chain(scale_by_kl_shampoo(), add_decayed_weights(weight_decay=0.01), scale_by_learning_rate(0.001))
    """
    rule = scale_by_kl_shampoo(
        *(b1, b2, eps, precondition_frequency, max_precond_dim, initial_eigenvalue, max_scale, state_dtype),
        distributed=distributed,
    )
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
