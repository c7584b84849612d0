"""Dion: orthonormal updates of low rank; the momentum keeps what they leave out."""

import dataclasses
import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import cast_tree_like, map_leaves, widen_tree, zeros_like, zip_leaves
from ..core.norms import abs_sq, safe_sqrt
from ..core.paths import Mask
from ..core.ranges import Count, Decay, DType, NonNegative, Range
from ..core.schedule import Rate
from ..core.slots import Counter, Exact16, Signed16
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..placement.like import keep_placement
from ..placement.owners import Distributed, Owners
from ..transforms.combining.chain import chain
from ..transforms.combining.select import partition
from ..transforms.matrices.dimension_numbers import MuonNumbers, Stacks
from ..transforms.matrices.kronecker import map_factors
from ..transforms.matrices.orthogonalize import needs_matrices
from ..transforms.matrices.routing import Layout
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from .adam import adamw
from .muon import muon_labels

RankFraction = Annotated[float, Range("(0, 1]")]


class ScaleByDionState(NamedTuple):
    """`count`: steps done. `mu`: the momentum M, including what the updates left out. `q`: Q, (inputs, rank)."""

    count: Counter
    mu: Signed16
    q: Exact16


@transformation
class scale_by_dion(GradientTransformation):
    """Dion's direction: u = √(outputs / inputs)·Q·Pᵀ, from a power iteration on B = M + g.

    P = orthonormal columns of Bᵀ·Q, R = B·P; then Q ← R with its columns divided by their norms,
    M ← B − (1 − momentum)·R·Pᵀ. u has the new Q.

    Momentum decays only in the directions of the update; the others stay in M for later steps (error feedback). A
    kernel has the shape (inputs, outputs), the transpose of the paper's. Leaves with more axes are stacks of
    matrices.

    Args:
        momentum: the paper's μ, in [0, 1).
        rank_fraction: the rank of u as a fraction of the shorter side, in (0, 1], rounded up.
        eps: added to the norms of R's columns, ≥ 0. Where a column of R is zero, or so small beside the others that
            it is a rounding error, u lacks it, and that of Q does not change.
        seed: seed of the initial Q, whose columns are random. Leaves of the same shape start with the same Q.
        state_dtype: storage dtype of M and Q. None means the params' dtype, or float32 for 16-bit params.
        weight_dimension_numbers: which axes are rows and columns, if not the last two; as in `scale_by_muon`. Q has
            the axes of the stack first, then the rows and the rank.
        distributed: as in `orthogonalize`, for the power iteration.

    Raises ValueError for a leaf with fewer than two axes.

    Ahn et al. 2025, arXiv:2504.05295, algorithm 1 (the version for one device, which gives the same results as that
    for many), with a QR decomposition. Differs from it in the columns of R that are rounding errors: scaled to length
    1, they would be directions that depend on the order of a sum, and so on the number of devices.

    >>> tx, g = scale_by_dion(rank_fraction=0.5), jnp.diag(jnp.array([3.0, 0.0]))
    >>> u, state = tx.update(g, tx.init(g))
    >>> abs(u).round(3).tolist(), state.q.shape
    ([[1.0, 0.0], [0.0, 0.0]], (2, 1))
    """

    preconditions = True
    stacks_matrices = True
    momentum: Decay = 0.95
    rank_fraction: Static[RankFraction] = 1.0
    eps: NonNegative = 1e-8
    seed: Static[Count] = 0
    state_dtype: Static[DType | None] = None
    weight_dimension_numbers: Static[MuonNumbers | None] = None
    distributed: Static[Distributed | None] = dataclasses.field(default=None, kw_only=True)

    def init(self, params):
        needs_matrices(params, "params")
        mu = zeros_like(params, self.state_dtype)

        def start(m):
            inputs, outputs = m.shape[-2:]
            rank = math.ceil(self.rank_fraction * min(inputs, outputs))
            q = jax.random.normal(jax.random.key(self.seed), (inputs, rank), jnp.float32)
            return jnp.sum(m, axis=-1, keepdims=True) + q.astype(m.dtype)  # where M has its rows

        stacked = Stacks(self.weight_dimension_numbers, params).stack(mu)
        return ScaleByDionState(zero_count(), mu, jax.tree.map(start, stacked))

    def update(self, updates, state, params=None, **extra):
        needs_matrices(updates)
        if params is not None:
            zip_leaves((updates, state.mu, params), ("updates", "the optimizer state", "params"))

        stacks = Stacks(self.weight_dimension_numbers, updates)
        g, m = stacks.stack(updates), stacks.stack(state.mu)
        b = map_leaves(lambda g, m: m + g, widen_tree(g, "updates"), read=(m,), same_shape=False)
        owners = Owners(self.distributed)
        u, taken, q = map_factors(_power_step, (b, state.q), (), (0, 0, 1), (self.eps,), owners, stacked=True)

        def leaf(u, m, b, taken):
            return u, b - (1 - self.momentum) * taken

        like = g if params is None else stacks.stack(params)
        new, mu = map_leaves(leaf, u, m, read=(b, taken), params=like)
        q = cast_tree_like(q, state.q)
        return keep_placement(stacks.back(new), updates), ScaleByDionState(increment(state.count), stacks.back(mu), q)


def _power_step(b: jax.Array, q: jax.Array, eps: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns u, R·Pᵀ and the new Q of matrices in the last two axes."""
    p, _ = jnp.linalg.qr(b.mT.conj() @ q)
    r = b @ p
    norms = safe_sqrt(jnp.sum(abs_sq(r), axis=-2, keepdims=True))
    rounding = max(b.shape[-2:]) * jnp.finfo(b.dtype).eps
    is_noise = norms <= rounding * jnp.max(norms, axis=-1, keepdims=True, initial=0)
    columns = jnp.where(is_noise, 0, r / (norms + eps))
    u = math.sqrt(b.shape[-1] / max(b.shape[-2], 1)) * columns @ p.mT.conj()
    return u, r @ p.mT.conj(), jnp.where(is_noise, q, columns)


@checked
def dion(
    learning_rate: Rate,
    momentum: Decay = 0.95,
    rank_fraction: Static[RankFraction] = 1.0,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask | None = None,
    *,
    seed: Count = 0,
    adam_b1: Decay = 0.9,
    adam_b2: Decay = 0.999,
    adam_weight_decay: Rate = 0.0,
    adam_learning_rate: Rate | None = None,
    matrix_mask: Mask | None = None,
    weight_dimension_numbers: MuonNumbers | None = None,
    matrix_layout: Layout | None = None,
    state_dtype: DType | None = None,
    distributed: Distributed | None = None,
) -> partition:
    """Dion for hidden matrices, AdamW for other leaves: w ← w − learning_rate · (u + weight_decay · w).

    See `scale_by_dion` for u and `adamw` for the other leaves.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; the authors use 0.01.
        weight_decay, weight_decay_mask: for the matrices, as in `add_decayed_weights`.
        adam_learning_rate: learning rate of the other leaves; learning_rate if None. The authors divide that of the
            output layer by √inputs.
        matrix_mask, weight_dimension_numbers, matrix_layout: which leaves are matrices for Dion, and how they are
            stored; as in `muon_labels`.

    Ahn et al. 2025, arXiv:2504.05295.

    >>> dion(0.01).param_labels({"embed": jnp.ones((9, 2)), "kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': 'adam', 'embed': 'adam', 'kernel': 'dion'}
    """
    matrices = chain(
        scale_by_dion(
            *(momentum, rank_fraction, eps, seed, state_dtype, weight_dimension_numbers), distributed=distributed
        ),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    rest = adamw(rate, adam_b1, adam_b2, eps, weight_decay=adam_weight_decay, state_dtype=state_dtype)
    labels = muon_labels(matrix_mask, weight_dimension_numbers, "dion", matrix_layout)
    return partition({"adam": rest, "dion": matrices}, labels)
