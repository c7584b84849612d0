"""Dion2: orthonormal updates of the rows or columns that moved most; the momentum keeps the others for later."""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import map_leaves, widen_tree, zeros_like, zip_leaves
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative, PositiveInt
from ..core.schedule import Rate
from ..core.sharding import sharded_by_compiler
from ..core.slots import Counter, Signed16
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..placement.like import keep_placement
from ..placement.owners import Distributed
from ..transforms.combining.chain import chain
from ..transforms.combining.select import partition
from ..transforms.matrices.dimension_numbers import MuonNumbers, Stacks
from ..transforms.matrices.newton_schulz import PRESETS, Coefficients, coefficient_rows, newton_schulz
from ..transforms.matrices.orthogonalize import map_matrices, needs_matrices
from ..transforms.matrices.routing import Layout
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from .adam import adamw
from .dion import RankFraction
from .muon import muon_labels


class ScaleByDion2State(NamedTuple):
    """`count`: steps done. `mu`: the momentum M, a sum of gradients that decays where updates were."""

    count: Counter
    mu: Signed16


@transformation
class scale_by_dion2(GradientTransformation):
    """Dion2's direction: u = √(columns / rows)·orthogonalize(B[K]) on the lines K, 0 elsewhere, from B = M + g.

    K are the lines of B, along its shorter side, with the largest sums of |b|: of a matrix with fewer rows than
    columns, rows; of others, columns. Then M ← B, times momentum on the lines K.

    So a line that is left out gathers gradients until it is chosen. A kernel has the shape (inputs, outputs). Leaves
    with more axes are stacks of matrices.

    Args:
        momentum: the paper's μ, in [0, 1).
        fraction: how many of the lines to choose, in (0, 1], rounded up; the authors use 0.25.
        ns_coeffs, ns_steps, eps, ns_dtype: as in `orthogonalize`.
        state_dtype: storage dtype of M. None means the params' dtype, or float32 for 16-bit params.
        weight_dimension_numbers: which axes are rows and columns, if not the last two; as in `scale_by_muon`.
        distributed: on a mesh, "owners" gives each device whole matrices of its own (see `orthogonalize`), "local"
            works on them where they lie. None means "owners".

    Raises ValueError for a leaf with fewer than two axes.

    Ahn, Amsel & Langford 2025, arXiv:2512.16928, algorithm 1, with the choice by sums that the authors' code makes.
    Differs from that code: the coefficients are Jordan's unless ns_coeffs="polar_express", in float32, and the choice
    is among all lines of a matrix, however it is sharded.

    >>> tx, g = scale_by_dion2(momentum=0.5, fraction=0.5), jnp.array([[4.0, 0.0], [0.0, 2.0]])
    >>> u, state = tx.update(g, tx.init(g))
    >>> u.round(2).tolist(), state.mu.tolist()
    ([[0.699999988079071, 0.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 2.0]])
    """

    preconditions = True
    stacks_matrices = True
    momentum: Decay = 0.95
    fraction: Static[RankFraction] = 0.25
    ns_coeffs: Coefficients = PRESETS["standard"]
    ns_steps: Static[PositiveInt] = 5
    eps: NonNegative = 1e-8
    state_dtype: Static[DType | None] = None
    weight_dimension_numbers: Static[MuonNumbers | None] = None
    distributed: Static[Distributed | None] = dataclasses.field(default=None, kw_only=True)
    ns_dtype: Static[DType | None] = dataclasses.field(default=None, kw_only=True)

    def init(self, params):
        needs_matrices(params, "params")
        Stacks(self.weight_dimension_numbers, params)
        return ScaleByDion2State(zero_count(), zeros_like(params, self.state_dtype))

    def update(self, updates, state, params=None, **extra):
        needs_matrices(updates)
        if params is not None:
            zip_leaves((updates, params), ("updates", "params"))
        stacks = Stacks(self.weight_dimension_numbers, updates)
        coefficients = coefficient_rows(self.ns_coeffs, self.ns_steps)

        def orthogonal(b):  # of stacks with no more rows than columns
            axis = -2 if b.shape[-2] < b.shape[-1] else -1
            return orthogonal_lines(b, self.fraction, axis, coefficients, self.eps, self.ns_dtype)

        def leaf(o, m, b):
            rows, columns = o.shape[-2:]
            chosen = jnp.any(o != 0, axis=-1 if rows < columns else -2, keepdims=True)
            return math.sqrt(columns / max(rows, 1)) * o, jnp.where(chosen, self.momentum * b, b)

        g, m = widen_tree(stacks.stack(updates), "updates"), stacks.stack(state.mu)
        b = map_leaves(lambda g, m: g + m, g, read=(m,))
        o = map_matrices(orthogonal, b, None, self.distributed)
        like = g if params is None else stacks.stack(params)
        new, mu = map_leaves(leaf, o, m, read=(b,), params=like)
        new = keep_placement(stacks.back(new), updates)
        return new, ScaleByDion2State(increment(state.count), keep_placement(stacks.back(mu), state.mu))


def orthogonal_lines(b: jax.Array, fraction: float, axis: int, coefficients: Any, eps: Any, dtype: Any) -> jax.Array:
    """Returns matrices whose lines with the largest sums, rows for axis -2, are made orthogonal, the others zero."""
    local = partial(_orthogonal_lines, fraction=fraction, axis=axis, dtype=dtype)
    return sharded_by_compiler(local, b, coefficients, eps)


def _orthogonal_lines(b: jax.Array, coefficients: Any, eps: Any, fraction: float, axis: int, dtype: Any) -> jax.Array:
    b = b if axis == -2 else b.mT
    k = math.ceil(fraction * b.shape[-2])
    order = jnp.argsort(-jnp.sum(jnp.abs(b), axis=-1), axis=-1)
    rank = jnp.argsort(order, axis=-1)[..., None]
    o = newton_schulz(jnp.take_along_axis(b, order[..., :k, None], -2), coefficients, eps, dtype=dtype)
    u = jnp.where(rank < k, jnp.take_along_axis(o, jnp.minimum(rank, k - 1), -2), 0)
    return u if axis == -2 else u.mT


@checked
def dion2(
    learning_rate: Rate,
    momentum: Decay = 0.95,
    fraction: Static[RankFraction] = 0.25,
    ns_coeffs: Coefficients = PRESETS["standard"],
    ns_steps: PositiveInt = 5,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask | None = None,
    *,
    adam_b1: Decay = 0.9,
    adam_b2: Decay = 0.999,
    adam_weight_decay: Rate = 0.0,
    adam_learning_rate: Rate | None = None,
    matrix_mask: Mask | None = None,
    weight_dimension_numbers: MuonNumbers | None = None,
    matrix_layout: Layout | None = None,
    state_dtype: DType | None = None,
    distributed: Distributed | None = None,
    ns_dtype: DType | None = None,
) -> partition:
    """Dion2 for hidden matrices, AdamW for other leaves: w ← w − learning_rate · (u + weight_decay · w).

    See `scale_by_dion2` for u and `adamw` for the other leaves.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; the authors use 0.01.
        weight_decay, weight_decay_mask: for the matrices, as in `add_decayed_weights`.
        adam_learning_rate: learning rate of the other leaves; learning_rate if None.
        matrix_mask, weight_dimension_numbers, matrix_layout: which leaves are matrices for Dion2, and how they are
            stored; as in `muon_labels`.

    Ahn, Amsel & Langford 2025, arXiv:2512.16928.

    >>> dion2(0.01).param_labels({"embed": jnp.ones((9, 2)), "kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': 'adam', 'embed': 'adam', 'kernel': 'dion2'}
    """
    numbers = weight_dimension_numbers
    matrices = chain(
        scale_by_dion2(
            *(momentum, fraction, ns_coeffs, ns_steps, eps, state_dtype, numbers),
            distributed=distributed,
            ns_dtype=ns_dtype,
        ),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    rest = adamw(rate, adam_b1, adam_b2, eps, weight_decay=adam_weight_decay, state_dtype=state_dtype)
    labels = muon_labels(matrix_mask, numbers, "dion2", matrix_layout)
    return partition({"adam": rest, "dion2": matrices}, labels)
