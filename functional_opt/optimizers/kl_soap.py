"""KL-SOAP: Adam in the eigenbasis of KL-Shampoo's factors."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import as_updates, map_leaves, widen_tree, zeros_like, zip_leaves
from ..core.norms import abs_sq, safe_sqrt
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative, Positive, PositiveInt
from ..core.schedule import Rate
from ..core.slots import Counter, Exact, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..placement.like import keep_placement
from ..placement.owners import Distributed, Owners
from ..transforms.combining.chain import chain
from ..transforms.matrices.kronecker import map_factors, multiply_axis, turn
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from .kl_shampoo import factor_slots, kl_means, new_basis


class ScaleByKLSoapState(NamedTuple):
    """`count`: steps done. `mu`, `nu`: running means of g' and |g'|², g' the gradient in the eigenbasis.

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
class scale_by_kl_soap(GradientTransformation):
    """Adam in a rotated basis: g' = Q_Lᴴ·g·Q_R; u = Q_L·(m / (√v + eps))·Q_Rᴴ, m and v the means of g' and |g'|².

    Q_L and Q_R are KL-Shampoo's (see `scale_by_kl_shampoo`): eigenvectors of factors whose gradients the other factor
    has whitened. A refresh rotates m into the new basis. The first step only computes the bases, by eigh, and its
    update is 0. The means have no bias correction. Leaves with fewer than two axes longer than 1 are not rotated.

    Args:
        b1, b2: decay rates of m and v, in [0, 1).
        shampoo_beta: decay rate of the factors, in [0, 1); b2 if None.
        eps: added outside the root, ≥ 0.
        precondition_frequency, max_precond_dim, initial_eigenvalue, max_scale: as in `scale_by_kl_shampoo`.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params. Factors are
            at least float32.
        distributed: as in `scale_by_kl_shampoo`.

    Lin et al. 2025, arXiv:2509.03378, as in the authors' code (yorkerlin/KL-Methods). Differs from `scale_by_soap` in
    the factors, in that v is not sorted by eigenvalue, and in the bias correction.

    >>> tx, g = scale_by_kl_soap(b1=0.0, b2=0.0, eps=1e-4), jnp.array([[2.0, 1.0], [0.0, 1.0]])
    >>> first, state = tx.update(g, tx.init(g))
    >>> u, state = tx.update(g, state)
    >>> first.tolist(), bool(jnp.allclose(u @ u.T, jnp.eye(2), atol=0.01))
    ([[0.0, 0.0], [0.0, 0.0]], True)
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.98
    shampoo_beta: Decay | None = None
    eps: NonNegative = 1e-8
    precondition_frequency: PositiveInt = 10
    max_precond_dim: Static[PositiveInt] = 10000
    initial_eigenvalue: Positive = 0.1
    max_scale: Positive = 4000.0
    state_dtype: Static[DType | None] = None
    distributed: Static[Distributed | None] = dataclasses.field(default=None, kw_only=True)

    def init(self, params):
        mu, nu = zeros_like(params, self.state_dtype), zeros_like(params, self.state_dtype, real=True)
        factors = factor_slots(params, self.max_precond_dim, self.initial_eigenvalue, self.distributed)
        return ScaleByKLSoapState(zero_count(), mu, nu, *factors)

    def update(self, updates, state, params=None, **extra):
        zip_leaves((updates, state.mu), ("updates", "the optimizer state"))
        first, owners = state.count == 0, Owners(self.distributed)
        g = widen_tree(updates, "updates")

        def adam(g, m, v):
            m_new, v_new = self.b1 * m + (1 - self.b1) * g, self.b2 * v + (1 - self.b2) * abs_sq(g)
            root = safe_sqrt(v_new) + self.eps
            u = jnp.where(first | (root == 0), 0, m_new / jnp.where(root == 0, 1, root))
            return u, jnp.where(first, m, m_new), jnp.where(first, v, v_new)

        (turned,) = map_factors(lambda g, q: (turn(g, q),), (g,), (state.q,), (0,), owners=owners)
        u, mu, nu = map_leaves(adam, turned, state.mu, state.nu)
        (u,) = map_factors(lambda u, q: (turn(u, q, back=True),), (u,), (state.q,), (0,), owners=owners)
        beta = self.b2 if self.shampoo_beta is None else self.shampoo_beta
        gg, eigenvalues = kl_means(g, state, beta, self.max_scale, owners)
        mu, q = jax.lax.cond(
            state.count % self.precondition_frequency == 0,
            lambda mu, gg, q: map_factors(_rebased, (g, mu), (gg, q), (1, 3), (first,), Owners(self.distributed)),
            lambda mu, gg, q: (mu, q),
            *(mu, gg, state.q),
        )
        new = as_updates(u, updates, params)
        kept = keep_placement((gg, q, eigenvalues), (state.gg, state.q, state.eigenvalues))
        return keep_placement(new, updates), ScaleByKLSoapState(increment(state.count), mu, nu, *kept)


def _rebased(g: Any, m: jax.Array, gg: list, q: list, first: Any) -> tuple[jax.Array, list]:
    """Returns m in new bases, and these."""
    q = list(q)
    for k, old in enumerate(q):
        if old.ndim > 1:
            q[k] = new_basis(gg[k], old, first)
            m = multiply_axis(q[k].conj().T @ old, m, k)
    return m, q


@checked
def kl_soap(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.98,
    shampoo_beta: Decay | None = None,
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
    """KL-SOAP: w ← w − learning_rate · (u + weight_decay · w). See `scale_by_kl_soap` for u.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.
        weight_decay, mask: as in `add_decayed_weights`; weights decay at the first step too.

    Lin et al. 2025, arXiv:2509.03378.

    >>> kl_soap(3e-3)
    chain(scale_by_kl_soap(), add_decayed_weights(weight_decay=0.01), scale_by_learning_rate(0.003))
    """
    rule = scale_by_kl_soap(
        *(b1, b2, shampoo_beta, eps, precondition_frequency, max_precond_dim, initial_eigenvalue, max_scale),
        state_dtype=state_dtype,
        distributed=distributed,
    )
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
