"""AdamH: Adam's directions for matrices that keep their norm."""

from ..core.checks import checked
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative
from ..core.schedule import Rate
from ..transforms.combining.select import partition
from ..transforms.matrices.dimension_numbers import MuonNumbers
from ..transforms.matrices.routing import Layout
from ..transforms.wrapping.hyperball import hyperball
from .adam import adamw, scale_by_adam
from .muon import muon_labels


@checked
def adamh(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.95,
    eps: NonNegative = 1e-8,
    *,
    adam_learning_rate: Rate | None = None,
    adam_weight_decay: Rate = 0.0,
    matrix_mask: Mask | None = None,
    weight_dimension_numbers: MuonNumbers | None = None,
    matrix_layout: Layout | None = None,
    state_dtype: DType | None = None,
) -> partition:
    """AdamH for hidden matrices, AdamW for other leaves: w ← r · n(w − learning_rate · r · n(m̂ / (√v̂ + eps))).

    r = ‖w‖ and n(x) = x / ‖x‖; see `hyperball`.

    Args:
        learning_rate: of the matrices, relative to their norm: a number ≥ 0, a schedule, or a function of the count;
            about 0.02.
        b1, b2, eps: as in `scale_by_adam`, for all leaves.
        adam_learning_rate: learning rate of the other leaves; learning_rate if None.
        adam_weight_decay: of the other leaves; the norm of matrices needs none.
        matrix_mask, weight_dimension_numbers, matrix_layout: which leaves are matrices, and how they are stored; as
            in `muon_labels`.

    Wen et al. 2026, arXiv:2606.16899.

    >>> import jax.numpy as jnp
    >>> adamh(0.02).param_labels({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': 'adam', 'kernel': 'adamh'}
    """
    rule = scale_by_adam(b1, b2, eps, state_dtype=state_dtype)
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    rest = adamw(rate, b1, b2, eps, weight_decay=adam_weight_decay, state_dtype=state_dtype)
    labels = muon_labels(matrix_mask, weight_dimension_numbers, "adamh", matrix_layout)
    return partition({"adam": rest, "adamh": hyperball(rule, learning_rate, weight_dimension_numbers)}, labels)
