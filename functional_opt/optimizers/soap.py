"""SOAP: Adam in the eigenbasis of Shampoo's statistics."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import as_updates, map_leaves, zeros_like, zip_leaves
from ..core.norms import abs_sq
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative, PositiveInt
from ..core.schedule import Rate
from ..core.slots import Counter, Exact, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..placement.like import keep_placement
from ..placement.owners import Distributed, Owners
from ..transforms.combining.chain import chain
from ..transforms.matrices.kronecker import (
    eigenvectors,
    factors_and_bases,
    gram,
    map_factors,
    mean_factor,
    multiply_axis,
    turn,
)
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate


class ScaleBySoapState(NamedTuple):
    """`count`: steps done. `mu`, `nu`: running means of g' and |g'|², g' the gradient in the eigenbasis.

    `gg[k]`: for every leaf, the running mean of G·Gᴴ, G its gradient unfolded along axis k. `q[k]`: its eigenvectors,
    in columns. Both are zeros of shape (1,) for an axis that is not rotated.
    """

    count: Counter
    mu: Signed
    nu: Unsigned
    gg: Exact
    q: Exact


@transformation
class scale_by_soap(GradientTransformation):
    """Adam in a rotated basis: g' = Q_Lᴴ·g·Q_R; u = Q_L·(m̂ / (√v̂ + eps))·Q_Rᴴ, m and v the means of g' and |g'|².

    After the update L ← shampoo_beta·L + (1 − shampoo_beta)·g·gᴴ, and R likewise of gᴴ·g. Every
    precondition_frequency steps Q_L is refreshed by a step of power iteration, Q_L ← qr(L·Q_L), after sorting its
    columns and v by eigenvalue; m is rotated into the new basis. A leaf with more axes has a Q for each.

    The first step only computes the basis, by eigh, and its update is 0, so that no gradient is used in a basis
    computed from it. Adam's step count begins at the second step.

    Args:
        b1, b2: decay rates of m and v, in [0, 1).
        shampoo_beta: decay rate of L and R, in [0, 1); b2 if None.
        eps: added outside the root, ≥ 0.
        precondition_frequency: number of steps from one refresh to the next, ≥ 1; other steps skip the work.
        max_precond_dim: an axis longer than this is not rotated.
        precondition_1d: whether to rotate leaves with one axis too, not only those with more.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params. L, R and Q
            are at least float32.
        distributed: as in `orthogonalize`, for all products and decompositions. Owners keep L, R and Q split over all
            devices where these divide them.

    Vyas et al. 2024, arXiv:2409.11321, with the first step and the sorting of the authors' code. Dimensions are
    not merged. No derivative is taken through Q.

    >>> tx, g = scale_by_soap(eps=1e-4), jnp.array([[2.0, 1.0], [0.0, 1.0]])
    >>> first, state = tx.update(g, tx.init(g))
    >>> u, state = tx.update(g, state)
    >>> first.tolist(), bool(jnp.allclose(u @ u.T, jnp.eye(2), atol=0.01))
    ([[0.0, 0.0], [0.0, 0.0]], True)
    """

    preconditions = True
    b1: Decay = 0.95
    b2: Decay = 0.95
    shampoo_beta: Decay | None = None
    eps: NonNegative = 1e-8
    precondition_frequency: PositiveInt = 10
    max_precond_dim: Static[PositiveInt] = 10000
    precondition_1d: Static[bool] = False
    state_dtype: Static[DType | None] = None
    distributed: Static[Distributed | None] = dataclasses.field(default=None, kw_only=True)

    def init(self, params):
        mu, nu = zeros_like(params, self.state_dtype), zeros_like(params, self.state_dtype, real=True)
        return ScaleBySoapState(zero_count(), mu, nu, *factors_and_bases(params, self._turns, self.distributed))

    def update(self, updates, state, params=None, **extra):
        zip_leaves((updates, state.mu), ("updates", "the optimizer state"))
        first, t = state.count == 0, jnp.maximum(state.count, 1)
        beta = self.b2 if self.shampoo_beta is None else self.shampoo_beta

        def turned(g, q):
            return turn(g, q), [gram(g, k) if x.ndim > 1 else x for k, x in enumerate(q)]

        def adam(g, m, v, *factors):
            m_new, v_new = self.b1 * m + (1 - self.b1) * g, self.b2 * v + (1 - self.b2) * abs_sq(g)
            u = m_new / (1 - self.b1**t) / (jnp.sqrt(v_new / (1 - self.b2**t)) + self.eps)
            u, m, v = (jnp.where(first, old, x) for x, old in ((u, jnp.zeros_like(u)), (m_new, m), (v_new, v)))
            gg, grams = factors[: len(state.gg)], factors[len(state.gg) :]
            return u, m, v, *(mean_factor(x, new, beta) for x, new in zip(gg, grams, strict=True))

        def turned_back(u, q):
            return (turn(u, q, back=True),)

        share = functools.partial(map_factors, owners=Owners(self.distributed))
        g, grams = share(turned, (updates,), (state.q,), (0, 1))
        u, mu, nu, *gg = map_leaves(adam, g, state.mu, state.nu, *state.gg, read=grams, same_shape=False)
        (u,) = share(turned_back, (u,), (state.q,), (0,))
        mu, nu, q = jax.lax.cond(
            state.count % self.precondition_frequency == 0,
            lambda *x: map_factors(_rebased, (u, *x[:2]), x[2:], (1, 2, 4), (first,), Owners(self.distributed)),
            lambda mu, nu, gg, q: (mu, nu, q),
            *(mu, nu, tuple(gg), state.q),
        )
        new = as_updates(u, updates, params)
        gg, q = keep_placement((tuple(gg), q), (state.gg, state.q))
        return keep_placement(new, updates), ScaleBySoapState(increment(state.count), mu, nu, gg, q)

    def _turns(self, shape: tuple[int, ...], k: int) -> bool:
        return len(shape) > (0 if self.precondition_1d else 1) and 1 < shape[k] <= self.max_precond_dim


def _rebased(_: Any, m: jax.Array, v: jax.Array, gg: list, q: list, first: Any) -> tuple:
    """Returns m and v in a new basis, and the basis."""
    q = list(q)
    for k, old in enumerate(q):
        if old.ndim > 1:
            q[k], order = jax.lax.cond(first, _decompose, _power_step, jax.lax.stop_gradient(gg[k]), old)
            m = multiply_axis(q[k].conj().T @ old, m, k)
            v = jnp.take(v, order, axis=k)
    return m, v, q


def _decompose(gg: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns all eigenvectors, largest eigenvalue first, and the order of v, unchanged, as v is still 0."""
    return eigenvectors(gg), jnp.arange(len(q))


def _power_step(gg: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns q after a step of power iteration, its columns sorted by their eigenvalues in gg, and the order."""
    power = gg @ q
    order = jnp.argsort(-jnp.sum(q.conj() * power, axis=0).real)
    return jnp.linalg.qr(power[:, order])[0], order


@checked
def soap(
    learning_rate: Rate,
    b1: Decay = 0.95,
    b2: Decay = 0.95,
    shampoo_beta: Decay | None = None,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.01,
    mask: Mask | None = None,
    precondition_frequency: PositiveInt = 10,
    max_precond_dim: PositiveInt = 10000,
    *,
    precondition_1d: bool = False,
    state_dtype: DType | None = None,
    distributed: Distributed | None = None,
) -> chain:
    """SOAP: w ← w − learning_rate · (u + weight_decay · w), u from Adam in Shampoo's eigenbasis. See `scale_by_soap`.

    Args:
        learning_rate: a number ≥ 0 (the paper's is 0.003), a schedule, or a function of the count.
        weight_decay, mask: as in `add_decayed_weights`; weights decay at the first step too.

    Vyas et al. 2024, arXiv:2409.11321.

    >>> soap(3e-3)
    chain(scale_by_soap(), add_decayed_weights(weight_decay=0.01), scale_by_learning_rate(0.003))
    """
    rule = scale_by_soap(
        *(b1, b2, shampoo_beta, eps, precondition_frequency, max_precond_dim, precondition_1d, state_dtype),
        distributed=distributed,
    )
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
