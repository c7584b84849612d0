"""MuonH: Muon's directions for matrices that keep their norm."""

from ..core.checks import checked
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative, PositiveInt
from ..core.schedule import Rate
from ..placement.owners import Distributed
from ..transforms.combining.select import partition
from ..transforms.matrices.dimension_numbers import MuonNumbers
from ..transforms.matrices.newton_schulz import PRESETS, Coefficients
from ..transforms.matrices.routing import Layout
from ..transforms.wrapping.hyperball import hyperball
from .adam import adamw
from .muon import muon_labels, scale_by_muon


@checked
def muonh(
    learning_rate: Rate,
    ns_coeffs: Coefficients = PRESETS["standard"],
    ns_steps: PositiveInt = 5,
    beta: Decay = 0.95,
    eps: NonNegative = 1e-8,
    *,
    nesterov: bool = True,
    adam_learning_rate: Rate | None = None,
    adam_b1: Decay = 0.9,
    adam_b2: Decay = 0.95,
    adam_weight_decay: Rate = 0.0,
    matrix_mask: Mask | None = None,
    weight_dimension_numbers: MuonNumbers | None = None,
    matrix_layout: Layout | None = None,
    state_dtype: DType | None = None,
    distributed: Distributed | None = None,
    ns_dtype: DType | None = None,
) -> partition:
    """MuonH for hidden matrices, AdamW for other leaves: w ← r · n(w − learning_rate · r · n(orthogonalize(m̂))).

    r = ‖w‖ and n(x) = x / ‖x‖; see `hyperball`, and `scale_by_muon` for m̂.

    Args:
        learning_rate: of the matrices, relative to their norm: a number ≥ 0, a schedule, or a function of the count;
            about 0.02.
        ns_coeffs, ns_steps, beta, eps, nesterov, distributed, ns_dtype: as in `scale_by_muon`.
        adam_learning_rate: learning rate of the other leaves; learning_rate if None.
        adam_b1, adam_b2, adam_weight_decay: of the other leaves, as in `adamw`.
        matrix_mask, weight_dimension_numbers, matrix_layout: which leaves are matrices, and how they are stored; as
            in `muon_labels`.

    Wen et al. 2026, arXiv:2606.16899.

    >>> import jax.numpy as jnp
    >>> muonh(0.02).param_labels({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': 'adam', 'kernel': 'muonh'}
    """
    numbers = weight_dimension_numbers
    rule = scale_by_muon(
        *(ns_coeffs, ns_steps, beta, eps),
        nesterov=nesterov,
        state_dtype=state_dtype,
        weight_dimension_numbers=numbers,
        distributed=distributed,
        ns_dtype=ns_dtype,
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    rest = adamw(rate, adam_b1, adam_b2, eps, weight_decay=adam_weight_decay, state_dtype=state_dtype)
    labels = muon_labels(matrix_mask, numbers, "muonh", matrix_layout)
    return partition({"adam": rest, "muonh": hyperball(rule, learning_rate, numbers)}, labels)
