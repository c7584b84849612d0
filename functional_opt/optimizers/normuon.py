"""NorMuon: Muon with updates of about the same size for all neurons."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import Tree, map_leaves, widen_tree, zeros_like, zip_leaves
from ..core.norms import abs_sq, matrix_norm, safe_sqrt
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative, PositiveInt
from ..core.schedule import Rate
from ..core.slots import Counter, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
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
from .muon import muon_labels


class ScaleByNorMuonState(NamedTuple):
    """`count`: steps done. `mu`: running mean of g. `nu`: that of each neuron's mean |o|², one number per column."""

    count: Counter
    mu: Signed
    nu: Unsigned


@transformation
class scale_by_normuon(GradientTransformation):
    """NorMuon's direction: m ← b1·m + (1 − b1)·g; o = orthogonalize(m); v ← b2·v + (1 − b2)·mean(|o|²).

    u = consistent_rms · √(rows · columns) · ô / ‖ô‖ with ô = o / (√v + eps). This scales the columns to the same
    size, and the matrix to the root mean square consistent_rms. The mean is over the inputs of each neuron, which are
    the rows of a kernel of shape (inputs, outputs). Leaves with more axes are stacks of matrices.

    Args:
        b1, b2: decay rates of the two means, in [0, 1).
        eps: added to √v and to the two norms that are divisors, ≥ 0.
        consistent_rms: root mean square of the updates, ≥ 0; that of Adam's is about 0.2. None keeps the norm of o
            and scales as Muon does: u = √max(1, columns / rows) · ‖o‖ · ô / ‖ô‖.
        ns_coeffs, ns_steps, ns_dtype: as in `orthogonalize`.
        nesterov: whether to orthogonalize b1·m + (1 − b1)·g, as in the authors' code, instead of the paper's m.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params.
        weight_dimension_numbers: which axes are rows and columns, if not the last two; as in `scale_by_muon`. v has
            the axes of the stack first, then 1 and the columns.
        distributed: on a mesh, "owners" gives each device whole matrices of its own (see `orthogonalize`), "local"
            works on them where they lie. None means "owners".

    Raises ValueError for a leaf with fewer than two axes.

    Li et al. 2025, arXiv:2510.05491, algorithm 1, with columns instead of rows, because its matrices are (outputs,
    inputs).

    >>> tx, g = scale_by_normuon(consistent_rms=1.0), jnp.array([[3.0, 1.0], [0.0, 0.5]])
    >>> u, state = tx.update(g, tx.init(g))
    >>> jnp.linalg.norm(u, axis=0).round(3).tolist(), state.nu.shape
    ([1.4140000343322754, 1.4140000343322754], (1, 2))
    """

    preconditions = True
    stacks_matrices = True
    b1: Decay = 0.95
    b2: Decay = 0.95
    eps: NonNegative = 1e-8
    consistent_rms: NonNegative | None = 0.2
    ns_coeffs: Coefficients = PRESETS["standard"]
    ns_steps: Static[PositiveInt] = 5
    nesterov: Static[bool] = True
    state_dtype: Static[DType | None] = None
    weight_dimension_numbers: Static[MuonNumbers | None] = None
    distributed: Static[Distributed | None] = None
    ns_dtype: Static[DType | None] = None

    def init(self, params):
        nu = zeros_like(of_neurons(self.weight_dimension_numbers, params), self.state_dtype, real=True)
        return ScaleByNorMuonState(zero_count(), zeros_like(params, self.state_dtype), nu)

    def update(self, updates, state, params=None, **extra):
        needs_matrices(updates)
        if params is not None:
            zip_leaves((updates, params), ("updates", "params"))
        coefficients = coefficient_rows(self.ns_coeffs, self.ns_steps)

        def mean(g, m):
            m = self.b1 * m + (1 - self.b1) * g
            return self.b1 * m + (1 - self.b1) * g if self.nesterov else m, m

        def orthogonal(m):
            return newton_schulz(m, coefficients, self.eps, dtype=self.ns_dtype)

        def of_one_size(o, v):
            rows, columns = o.shape[-2:]
            v = self.b2 * v + (1 - self.b2) * jnp.sum(abs_sq(o), axis=-2, keepdims=True) / max(rows, 1)
            u = o / (safe_sqrt(v) + self.eps)
            if self.consistent_rms is None:
                size = max(1.0, columns / max(rows, 1)) ** 0.5 * matrix_norm(o)
            else:
                size = self.consistent_rms * math.sqrt(rows * columns)
            return u * (size / (matrix_norm(u) + self.eps)), v

        stacks = Stacks(self.weight_dimension_numbers, updates)
        m, mu = map_leaves(mean, widen_tree(updates, "updates"), state.mu)
        o = map_matrices(orthogonal, stacks.stack(m), None, self.distributed)
        like = updates if params is None else params
        updates, nu = map_leaves(of_one_size, o, state.nu, params=stacks.stack(like), same_shape=False)
        updates = stacks.back(updates)
        return updates, ScaleByNorMuonState(increment(state.count), mu, nu)


def of_neurons(numbers: Any, params: Tree) -> Tree:
    """Returns one number for each column of the matrices, placed as the columns are."""

    def leaf(p: Any) -> Any:
        mean = lambda x: jnp.mean(x, axis=-2, keepdims=True) if jnp.ndim(x) > 1 else x  # noqa: E731
        return jax.eval_shape(mean, p) if isinstance(p, jax.ShapeDtypeStruct) else mean(p)

    return jax.tree.map(leaf, Stacks(numbers, params).stack(params))


@checked
def normuon(
    learning_rate: Rate,
    b1: Decay = 0.95,
    b2: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask | None = None,
    *,
    consistent_rms: NonNegative | None = 0.2,
    ns_coeffs: Coefficients = PRESETS["standard"],
    ns_steps: PositiveInt = 5,
    nesterov: bool = True,
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
    """NorMuon for hidden matrices, AdamW for other leaves: w ← w − learning_rate · (u + weight_decay · w).

    See `scale_by_normuon` for u and `adamw` for the other leaves.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; Adam's with consistent_rms=0.2.
        weight_decay, weight_decay_mask: for the matrices, as in `add_decayed_weights`.
        adam_learning_rate: learning rate of the other leaves; learning_rate if None.
        matrix_mask, weight_dimension_numbers, matrix_layout: which leaves are matrices for NorMuon, and how they are
            stored; as in `muon_labels`.
        distributed, ns_dtype: how matrices on a mesh are worked on, and the dtype of the products that make them
            orthogonal; as in `scale_by_normuon`.

    Li et al. 2025, arXiv:2510.05491.

    >>> normuon(1e-3).param_labels({"embed": jnp.ones((9, 2)), "kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': 'adam', 'embed': 'adam', 'kernel': 'normuon'}
    """
    numbers = weight_dimension_numbers
    matrices = chain(
        scale_by_normuon(
            *(b1, b2, eps, consistent_rms, ns_coeffs, ns_steps, nesterov),
            *(state_dtype, numbers, distributed, ns_dtype),
        ),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    rest = adamw(rate, adam_b1, adam_b2, eps, weight_decay=adam_weight_decay, state_dtype=state_dtype)
    labels = muon_labels(matrix_mask, numbers, "normuon", matrix_layout)
    return partition({"adam": rest, "normuon": matrices}, labels)
