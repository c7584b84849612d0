"""PSGD Kron: a Kronecker-factored preconditioner, fitted on the Lie group of triangular matrices."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import Static, checked
from ..core.leaves import as_updates, map_leaves, widen_tree, zeros_like, zip_leaves
from ..core.norms import abs_sq, nonzero, safe_sqrt
from ..core.paths import Mask
from ..core.ranges import Decay, DType, Positive, PositiveBound, PositiveInt
from ..core.schedule import Rate, rate_at
from ..core.slots import Counter, Exact, RandomKey, Signed
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..placement.like import keep_placement
from ..placement.owners import Distributed, Owners
from ..transforms.combining.chain import chain
from ..transforms.matrices.kronecker import gram, map_factors, multiply_axis, slots_by_axis, sum_of_slices
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from ..transforms.stochastic.noise import Key, key_data, key_in, stored_like


class ScaleByPsgdKronState(NamedTuple):
    """`count`: steps done. `mu`: running mean of g. `rng_key`: the key data (uint32) for the next probes.

    `q[k]`: for every leaf, the factor of its axis k: an upper triangular matrix, or a vector if the factor is
    diagonal. It is zeros of shape (1,) if the leaf has no such axis.
    """

    count: Counter
    mu: Signed
    q: Exact
    rng_key: RandomKey


@transformation
class scale_by_psgd_kron(GradientTransformation):
    """PSGD Kron's direction: u = P·m̂ with P = QᴴQ, Q = Q_1 ⊗ Q_2 ⊗ ..., one factor per axis, fitted to whiten u.

    m ← b1·m + (1 − b1)·g; m̂ = m / (1 − b1ᵗ). Q descends on E[m̂ᴴ·P·m̂ + zᴴ·P⁻¹·z], z a random probe of ±1, with
    upper triangular factors. With a = Q·m̂ and b = Q⁻ᴴ·z, unfolded along axis k as A_k and B_k, a fit is

        Q_k ← Q_k − precond_lr · triu(A_k·A_kᴴ − B_k·B_kᴴ) · Q_k / ‖A_k·A_kᴴ + B_k·B_kᴴ‖.

    Only some steps, drawn at random, fit Q, and a leaf is skipped if the m̂ or g that its Q is fitted to is all 0.
    The product of the factors' largest elements is kept within 1e±18. u is scaled down to a root mean square of at
    most max_update_rms.

    Args:
        b1: decay rate of the mean, in [0, 1).
        preconditioner_update_probability: probability that a step fits Q: a number, a schedule, or a function of the
            count. If None, it is 1 for 500 steps and then falls as exp(−0.001·t) to 0.03. Other steps skip the work.
        max_size_triangular: an axis longer than this has a diagonal factor.
        min_ndim_triangular: every axis of a leaf with fewer axes than this has a diagonal factor too.
        momentum_into_precond_update: whether to fit Q to m̂; it is fitted to g if not.
        precond_lr: learning rate of the fit, in [0, 1). The norm in the formula is a lower bound of the largest
            eigenvalue.
        precond_init_scale: initial Q, as a multiple of the identity, > 0.
        max_update_rms: largest root mean square of a leaf's u, > 0; no bound if None.
        key: a `jax.random` key or an integer seed; seed 0 if None.
        state_dtype: storage dtype of m. None means the params' dtype, or float32 for 16-bit params. Q is at least
            float32.
        distributed: as in `orthogonalize`, for all products and the fit. Owners keep triangular factors split over
            all devices where these divide them.

    Li 2015, arXiv:1512.04202. The fit, its rate and its schedule are as in Li's and Walters' Kron. Differs from it:
    the probes are ±1, not normal, which gives the same expectation and less noise; all leaves share one key; the
    factors are balanced at every fit.

    >>> tx = scale_by_psgd_kron()
    >>> u, state = tx.update({"w": jnp.full(2, 100.0)}, tx.init({"w": jnp.zeros(2)}))
    >>> u["w"].round(2).tolist(), state.q[0]["w"].round(2).tolist()
    ([1.100000023841858, 1.100000023841858], [0.8999999761581421, 0.8999999761581421])
    """

    preconditions = True
    b1: Decay = 0.9
    preconditioner_update_probability: Rate | None = None
    max_size_triangular: Static[PositiveInt] = 8192
    min_ndim_triangular: Static[PositiveInt] = 2
    momentum_into_precond_update: Static[bool] = True
    precond_lr: Decay = 0.1
    precond_init_scale: Positive = 1.0
    max_update_rms: PositiveBound | None = 1.1
    key: Key = None
    state_dtype: Static[DType | None] = None
    distributed: Static[Distributed | None] = dataclasses.field(default=None, kw_only=True)

    def init(self, params):
        def factor(x, k):
            diagonal = sum_of_slices(x, k) + self.precond_init_scale ** (1 / x.ndim)
            if not self._is_triangular(x.shape, k):
                return diagonal
            return diagonal[:, None] * jnp.eye(x.shape[k], dtype=x.dtype)

        q = slots_by_axis(params, factor, distributed=self.distributed)
        mu = zeros_like(params, self.state_dtype)
        return ScaleByPsgdKronState(zero_count(), mu, q, key_data(self.key))

    def update(self, updates, state, params=None, **extra):
        zip_leaves((updates, state.mu), ("updates", "the optimizer state"))
        t = increment(state.count)
        key, now = jax.random.split(key_in(state.rng_key, self.key))
        draw, probe = jax.random.split(now)
        due = jax.random.uniform(draw, (), "float32") < self._probability(state.count)

        def mean(g, m):
            m = self.b1 * m + (1 - self.b1) * g
            return m / (1 - self.b1**t), m

        g = widen_tree(updates, "updates")
        m_hat, mu = map_leaves(mean, g, state.mu)
        u, q = map_factors(
            _whitened,
            (m_hat, m_hat if self.momentum_into_precond_update else g),
            (state.q,),
            (0, 2),
            (due, probe, self.precond_lr, self.max_update_rms),
            Owners(self.distributed),
        )
        new = as_updates(u, updates, params)
        q = keep_placement(q, state.q)
        return keep_placement(new, updates), ScaleByPsgdKronState(t, mu, q, stored_like(key, state.rng_key))

    def _is_triangular(self, shape: tuple[int, ...], k: int) -> bool:
        return len(shape) >= self.min_ndim_triangular and 1 < shape[k] <= self.max_size_triangular

    def _probability(self, count: jax.Array) -> Any:
        if self.preconditioner_update_probability is None:
            return jnp.clip(jnp.exp(-0.001 * (jnp.asarray(count, float) - 500)), 0.03, 1)
        return rate_at(self.preconditioner_update_probability, count)


def _whitened(m_hat: jax.Array, seen: jax.Array, q: list, due: Any, probe: Any, rate: Any, max_rms: Any) -> tuple:
    """Returns the update for a leaf, and its factors, fitted to `seen` if that is due."""
    if m_hat.size == 0:
        return m_hat, q
    u, seen = (x.reshape(x.shape or (1,)) for x in (m_hat, seen))

    def fitted(q):
        probes = jax.random.rademacher(probe, seen.shape, "float32")
        informs = jnp.any(seen != 0)  # zeros carry no information: Q would grow for ever
        return jax.lax.cond(informs, lambda q: _fit(q, seen, probes, rate), lambda q: q, q)

    q = jax.lax.cond(due, fitted, lambda q: q, q)
    size = nonzero(jnp.max(jnp.abs(u)))
    u = u / size
    for k, factor in enumerate(q):
        u = _times(factor.conj() if factor.ndim == 1 else factor.conj().T, _times(factor, u, k), k)
    if max_rms is not None:
        most = nonzero(jnp.max(jnp.abs(u)))
        rms = most * safe_sqrt(jnp.mean(abs_sq(u / most)))
        size = jnp.minimum(size, max_rms / nonzero(rms))
    return (u * size).reshape(m_hat.shape), q


def _times(q: jax.Array, x: Any, k: int) -> jax.Array:
    """Multiplies x along axis k by a factor, which is a matrix or a diagonal."""
    return (
        multiply_axis(q, x, k) if q.ndim == 2 else x * q.reshape([-1 if axis == k else 1 for axis in range(x.ndim)])
    )


def _fit(q: list, g: jax.Array, probes: jax.Array, rate: Any) -> list:
    """Returns all factors after one step of the fit."""
    from jax.scipy.linalg import solve_triangular  # slow to import

    size = nonzero(jnp.max(jnp.abs(g)))
    a, b = g / size, probes.astype(g.dtype)
    for k, factor in enumerate(q):
        a = _times(factor, a, k)
        if factor.ndim == 1:
            b = _times(1 / factor.conj(), b, k)
        else:
            rows = jnp.moveaxis(b, k, 0)
            solved = solve_triangular(factor, rows.reshape(len(rows), -1), trans="C")
            b = jnp.moveaxis(solved.reshape(rows.shape), 0, k)
    of_a, of_b = (nonzero(jnp.max(jnp.abs(x))) for x in (a, b))  # squares may overflow, and only the ratio matters
    a, b = a / of_a * jnp.minimum(1, of_a / of_b * size), b / of_b * jnp.minimum(1, of_b / of_a / size)
    new = []
    for k, factor in enumerate(q):
        if factor.ndim == 1:
            aa, bb = sum_of_slices(abs_sq(a), k), sum_of_slices(abs_sq(b), k)
            new.append(factor - rate * (aa - bb) / jnp.max(aa + bb) * factor)
        else:
            aa, bb = gram(a, k), gram(b, k)
            new.append(factor - rate * jnp.triu(aa - bb) / _largest(aa + bb) @ factor)
    sizes = [jnp.max(jnp.abs(factor)) for factor in new]
    most = np.log(1e18)
    mean = jnp.exp(jnp.clip(sum(jnp.log(size) for size in sizes), -most, most) / len(sizes))
    return [(factor * (mean / size)).astype(old.dtype) for factor, size, old in zip(new, sizes, q, strict=True)]


def _largest(a: jax.Array) -> jax.Array:
    """Returns a close lower bound of the largest eigenvalue of a Hermitian matrix without negative eigenvalues."""
    scale = jnp.max(jnp.abs(a))
    a = a / scale
    x = a @ a[:, jnp.argmax(jnp.sum(abs_sq(a), axis=0))]
    return scale * safe_sqrt(jnp.sum(abs_sq(a @ x)) / jnp.sum(abs_sq(x)))


@checked
def psgd_kron(
    learning_rate: Rate,
    b1: Decay = 0.9,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    preconditioner_update_probability: Rate | None = None,
    max_size_triangular: PositiveInt = 8192,
    min_ndim_triangular: PositiveInt = 2,
    *,
    momentum_into_precond_update: bool = True,
    precond_lr: Decay = 0.1,
    precond_init_scale: Positive = 1.0,
    max_update_rms: PositiveBound | None = 1.1,
    key: Key = None,
    state_dtype: DType | None = None,
    distributed: Distributed | None = None,
) -> chain:
    """PSGD Kron: w ← w − learning_rate · (P·m̂ + weight_decay · w), P fitted as it runs. See `scale_by_psgd_kron`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; about a third of Adam's.
        weight_decay, mask: as in `add_decayed_weights`.

    Li 2015, arXiv:1512.04202.

    >>> psgd_kron(3e-4)
    chain(scale_by_psgd_kron(), add_decayed_weights(), scale_by_learning_rate(0.0003))
    """
    rule = scale_by_psgd_kron(
        b1,
        preconditioner_update_probability,
        max_size_triangular,
        min_ndim_triangular,
        momentum_into_precond_update,
        precond_lr,
        precond_init_scale,
        max_update_rms,
        key,
        state_dtype,
        distributed=distributed,
    )
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
