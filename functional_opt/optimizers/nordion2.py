"""NorDion2: Dion2 with updates of about the same size for all neurons."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import is_nothing, map_leaves, widen_tree, zeros_like, zip_leaves
from ..core.norms import abs_sq, matrix_norm, nonzero, safe_sqrt
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative, PositiveInt
from ..core.schedule import Rate
from ..core.slots import Counter, Signed16, Unsigned
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..placement.like import keep_placement
from ..placement.owners import Distributed
from ..transforms.combining.chain import chain
from ..transforms.combining.select import partition
from ..transforms.matrices.dimension_numbers import MuonNumbers, Stacks
from ..transforms.matrices.newton_schulz import PRESETS, Coefficients, coefficient_rows
from ..transforms.matrices.orthogonalize import map_matrices, needs_matrices
from ..transforms.matrices.routing import Layout
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from .adam import adamw
from .dion import RankFraction
from .dion2 import orthogonal_lines
from .muon import muon_labels
from .normuon import of_neurons


class ScaleByNorDion2State(NamedTuple):
    """`count`: steps done. `mu`: the momentum M, a sum of gradients that decays where updates were.

    `nu`: running mean of each neuron's mean |o|², one number per column, over the steps that chose it.
    """

    count: Counter
    mu: Signed16
    nu: Unsigned


@transformation
class scale_by_nordion2(GradientTransformation):
    """NorDion2's direction: o = orthogonalize(B[K]) on the columns K, from B = M + g; u = √(columns / rows)·‖o‖·n(ô).

    K are the columns of B, which are the neurons of a kernel of shape (inputs, outputs), with the largest sums of
    |b|. ô = o / (√v + eps) and n(x) = x / ‖x‖, where v ← b2·v + (1 − b2)·mean(|o|²) on K, the mean over the rows.
    Then M ← B, times momentum on K. Leaves with more axes are stacks of matrices.

    Args:
        momentum, fraction, ns_coeffs, ns_steps, state_dtype, distributed, ns_dtype: as in `scale_by_dion2`.
        b2: decay rate of the mean, in [0, 1).
        eps: added to √v and to the norm in `orthogonalize`, ≥ 0.
        weight_dimension_numbers: as in `scale_by_muon`. v has the axes of the stack first, then 1 and the columns.

    Raises ValueError for a leaf with fewer than two axes.

    Ahn, Amsel & Langford 2025, arXiv:2512.16928, and Li et al. 2025, arXiv:2510.05491, as the authors of the former
    combine them in their code, which also calls it Dion3. Differs from that as `scale_by_dion2` does.

    >>> tx, g = scale_by_nordion2(fraction=0.5), jnp.array([[3.0, 1.0, 0.0, 0.5], [0.0, 2.0, 0.1, 0.5]])
    >>> u, state = tx.update(g, tx.init(g))
    >>> jnp.linalg.norm(u, axis=0).round(2).tolist(), state.nu.shape
    ([1.1699999570846558, 1.1699999570846558, 0.0, 0.0], (1, 4))
    """

    preconditions = True
    stacks_matrices = True
    momentum: Decay = 0.95
    b2: Decay = 0.95
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
        nu = zeros_like(of_neurons(self.weight_dimension_numbers, params), self.state_dtype, real=True)
        return ScaleByNorDion2State(zero_count(), zeros_like(params, self.state_dtype), nu)

    def update(self, updates, state, params=None, **extra):
        needs_matrices(updates)
        if params is not None:
            zip_leaves((updates, params), ("updates", "params"))
        stacks = Stacks(self.weight_dimension_numbers, updates)
        coefficients = coefficient_rows(self.ns_coeffs, self.ns_steps)

        def orthogonal(tall):
            """Maps over the tall matrices, which come transposed, or over the others."""
            own = jax.tree.map(lambda x: x if (x.shape[-2] > x.shape[-1]) == tall else None, b)
            axis = -2 if tall else -1

            def lines(x):
                return orthogonal_lines(x, self.fraction, axis, coefficients, self.eps, self.ns_dtype)

            return map_matrices(lines, own, None, self.distributed)

        def leaf(o, v, m, b):
            rows, columns = o.shape[-2:]
            chosen = jnp.any(o != 0, axis=-2, keepdims=True)
            mean = jnp.sum(abs_sq(o), axis=-2, keepdims=True) / max(rows, 1)
            v = jnp.where(chosen, self.b2 * v + (1 - self.b2) * mean, v)
            u = jnp.where(chosen, o / nonzero(safe_sqrt(v) + self.eps), 0)
            size = math.sqrt(columns / max(rows, 1)) * matrix_norm(o) / nonzero(matrix_norm(u))
            return u * size, v, jnp.where(chosen, self.momentum * b, b)

        g, m = widen_tree(stacks.stack(updates), "updates"), stacks.stack(state.mu)
        b = map_leaves(lambda g, m: g + m, g, read=(m,))
        o = jax.tree.map(lambda x, y: y if is_nothing(x) else x, *map(orthogonal, (True, False)), is_leaf=is_nothing)
        like = g if params is None else stacks.stack(params)
        new, nu, mu = map_leaves(leaf, o, state.nu, m, read=(b,), params=like, same_shape=False)
        new, mu = keep_placement(stacks.back(new), updates), keep_placement(stacks.back(mu), state.mu)
        return new, ScaleByNorDion2State(increment(state.count), mu, keep_placement(nu, state.nu))


@checked
def nordion2(
    learning_rate: Rate,
    momentum: Decay = 0.95,
    b2: Decay = 0.95,
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
    """NorDion2 for hidden matrices, AdamW for other leaves: w ← w − learning_rate · (u + weight_decay · w).

    See `scale_by_nordion2` for u and `adamw` for the other leaves.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; the authors use 0.01.
        weight_decay, weight_decay_mask: for the matrices, as in `add_decayed_weights`.
        adam_learning_rate: learning rate of the other leaves; learning_rate if None.
        matrix_mask, weight_dimension_numbers, matrix_layout: which leaves are matrices for NorDion2, and how they are
            stored; as in `muon_labels`.

    Ahn, Amsel & Langford 2025, arXiv:2512.16928.

    >>> nordion2(0.01).param_labels({"embed": jnp.ones((9, 2)), "kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': 'adam', 'embed': 'adam', 'kernel': 'nordion2'}
    """
    numbers = weight_dimension_numbers
    matrices = chain(
        scale_by_nordion2(
            *(momentum, b2, fraction, ns_coeffs, ns_steps, eps, state_dtype, numbers),
            distributed=distributed,
            ns_dtype=ns_dtype,
        ),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    rest = adamw(rate, adam_b1, adam_b2, eps, weight_decay=adam_weight_decay, state_dtype=state_dtype)
    labels = muon_labels(matrix_mask, numbers, "nordion2", matrix_layout)
    return partition({"adam": rest, "nordion2": matrices}, labels)
