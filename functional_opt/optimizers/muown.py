"""Muown: Muon for the directions of a matrix's columns, Adam for their magnitudes."""

from ..core.checks import checked
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative, PositiveInt
from ..core.schedule import Rate
from ..placement.owners import Distributed
from ..transforms.combining.chain import chain
from ..transforms.combining.select import partition
from ..transforms.matrices.dimension_numbers import MuonNumbers
from ..transforms.matrices.newton_schulz import PRESETS, Coefficients
from ..transforms.matrices.orthogonalize import orthogonalize, scale_by_shape
from ..transforms.matrices.routing import Layout
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from ..transforms.scaling.moments import trace
from ..transforms.wrapping.weight_normalized import weight_normalized
from .adam import adamw
from .muon import muon_labels


@checked
def muown(
    learning_rate: Rate,
    momentum: Decay = 0.95,
    ns_coeffs: Coefficients = PRESETS["standard"],
    ns_steps: PositiveInt = 5,
    weight_decay: Rate = 0.0,
    *,
    nesterov: bool = True,
    consistent_rms: NonNegative | None = 0.2,
    adam_b1: Decay = 0.9,
    adam_b2: Decay = 0.95,
    adam_eps: NonNegative = 1e-8,
    adam_weight_decay: Rate = 0.0,
    adam_learning_rate: Rate | None = None,
    matrix_mask: Mask | None = None,
    weight_dimension_numbers: MuonNumbers | None = None,
    matrix_layout: Layout | None = None,
    state_dtype: DType | None = None,
    distributed: Distributed | None = None,
    ns_dtype: DType | None = None,
) -> partition:
    """Muown for hidden matrices, AdamW elsewhere: w = g · v / ‖v‖ by columns, with Muon for v and AdamW for g.

    v ← v − learning_rate · s · orthogonalize(∂v + momentum · m), m ← momentum · m + ∂v, and g by AdamW with the same
    learning rate. The norms of columns, which make Muon's matrices grow, are learned instead of drifting. See
    `weight_normalized` for ∂v and ∂g, and `scale_by_shape` for s.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; Adam's with consistent_rms=0.2.
        momentum, nesterov: as in `trace`; without nesterov m takes the place of ∂v + momentum · m.
        ns_coeffs, ns_steps, ns_dtype: as in `orthogonalize`.
        weight_decay: of the magnitudes.
        consistent_rms: as in `scale_by_shape`.
        adam_b1, adam_b2, adam_eps: of the magnitudes and the other leaves.
        adam_weight_decay, adam_learning_rate: of the other leaves, whose learning rate is learning_rate if that is
            None.
        matrix_mask, weight_dimension_numbers, matrix_layout: which leaves are matrices, and how they are stored; as
            in `muon_labels`.
        distributed: as in `orthogonalize`.

    Lion et al. 2026, arXiv:2605.10797, algorithm 1, with columns instead of rows, because its matrices are (outputs,
    inputs). The authors' code (kcc-lion/muown) applies weight decay to w, which changes directions too, and takes a
    fused matrix of queries, keys and values apart.

    >>> import jax.numpy as jnp
    >>> muown(1e-3).param_labels({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': 'adam', 'kernel': 'muown'}
    """
    numbers = weight_dimension_numbers
    direction = chain(
        trace(momentum, nesterov, state_dtype),
        orthogonalize(
            ns_coeffs, ns_steps, weight_dimension_numbers=numbers, distributed=distributed, ns_dtype=ns_dtype
        ),
        scale_by_shape(consistent_rms, numbers),
        scale_by_learning_rate(learning_rate),
    )

    def adam(rate, decay):
        return adamw(rate, adam_b1, adam_b2, adam_eps, weight_decay=decay, state_dtype=state_dtype)

    matrices = weight_normalized(direction, adam(learning_rate, weight_decay), numbers)
    rest = adam(learning_rate if adam_learning_rate is None else adam_learning_rate, adam_weight_decay)
    labels = muon_labels(matrix_mask, numbers, "muown", matrix_layout)
    return partition({"adam": rest, "muown": matrices}, labels)
