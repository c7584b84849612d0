"""SOAP-Muon: SOAP's directions for matrices, made orthogonal."""

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
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from .adam import adamw
from .muon import muon_labels
from .soap import scale_by_soap


@checked
def soap_muon(
    learning_rate: Rate,
    b1: Decay = 0.95,
    b2: Decay = 0.98,
    shampoo_beta: Decay | None = None,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask | None = None,
    precondition_frequency: PositiveInt = 10,
    max_precond_dim: PositiveInt = 10000,
    *,
    ns_coeffs: Coefficients = PRESETS["standard"],
    ns_steps: PositiveInt = 5,
    consistent_rms: NonNegative | None = None,
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
    """SOAP-Muon for hidden matrices, AdamW elsewhere: w ← w − learning_rate · (s·orthogonalize(u) + weight_decay·w).

    u is SOAP's direction. It whitens the gradients only roughly, between refreshes most of all, and the
    orthogonalization completes this. See `scale_by_soap`, `orthogonalize`, and `scale_by_shape` for s. All axes of a
    leaf are rotated, those of heads and stacked layers, too.

    Evidence is mixed: it is in records of modded-nanogpt (pull requests 278 and 321), and did not beat MuonH in
    marin-community/marin (issues 5728 and 6082).

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; Muon's.
        b1, b2, shampoo_beta, eps, precondition_frequency, max_precond_dim: as in `scale_by_soap`.
        weight_decay, weight_decay_mask: for the matrices, as in `add_decayed_weights`.
        ns_coeffs, ns_steps, ns_dtype: as in `orthogonalize`.
        consistent_rms: as in `scale_by_shape`; 1.0 gives the size of the authors' first version.
        adam_b1, adam_b2, adam_weight_decay, adam_learning_rate: of the other leaves, whose learning rate is
            learning_rate if that is None.
        matrix_mask, weight_dimension_numbers, matrix_layout: which leaves are matrices, and how they are stored; as
            in `muon_labels`.
        distributed: as in `scale_by_soap` and `orthogonalize`.

    Vyas et al. 2025, Improving SOAP using iterative whitening and Muon. The authors' code (nikhilvyas/SOAP_MUON) adds
    two cubic steps to the iteration, and scales the first steps by a bias correction.

    >>> import jax.numpy as jnp
    >>> soap_muon(0.02).param_labels({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': 'adam', 'kernel': 'soap_muon'}
    """
    numbers = weight_dimension_numbers
    matrices = chain(
        scale_by_soap(
            *(b1, b2, shampoo_beta, eps, precondition_frequency, max_precond_dim),
            state_dtype=state_dtype,
            distributed=distributed,
        ),
        orthogonalize(
            ns_coeffs, ns_steps, weight_dimension_numbers=numbers, distributed=distributed, ns_dtype=ns_dtype
        ),
        scale_by_shape(consistent_rms, numbers),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    rest = adamw(rate, adam_b1, adam_b2, eps, weight_decay=adam_weight_decay, state_dtype=state_dtype)
    labels = muon_labels(matrix_mask, numbers, "soap_muon", matrix_layout)
    return partition({"adam": rest, "soap_muon": matrices}, labels)
