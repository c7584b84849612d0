"""hyperball: matrices that keep their norm, moved by a fraction of it."""

from typing import NamedTuple

from ...core.checks import Static
from ...core.leaves import map_leaves, widen_params, widen_tree
from ...core.norms import matrix_norm, nonzero
from ...core.schedule import Rate, rate_at
from ...core.slots import Counter, States
from ...core.transformation import (
    GradientTransformation,
    Transformation,
    increment,
    needs_params,
    transformation,
    zero_count,
)
from ..combining.nesting import walk
from ..matrices.dimension_numbers import MuonNumbers, Stacks
from ..matrices.orthogonalize import needs_matrices
from ..scaling.learning_rate import scale_by_learning_rate


class HyperballState(NamedTuple):
    """`count`: steps done. `inner_state`: the state of the rule."""

    count: Counter
    inner_state: States


@transformation
class hyperball(GradientTransformation):
    """Moves each matrix along the direction of a rule, and keeps its norm: w ← r · n(w − learning_rate · r · n(u)).

    r = ‖w‖ and n(x) = x / ‖x‖, in Frobenius norms, and u is the direction that the rule gives, without a learning
    rate. The update is the difference. So learning_rate is the angle, in radians, that a small step turns w by, and
    weight decay has nothing to do.

    A direction of 0 leaves a matrix as it is. A matrix of zeros stays as it is: leave it to another rule, or start it
    from small random numbers. The norm of a 16-bit matrix drifts by the rounding of its params.

    Args:
        inner: the rule, such as `scale_by_adam` or `scale_by_muon`.
        learning_rate: a number ≥ 0, a schedule, or a function of the count.
        weight_dimension_numbers: which axes make up the matrices, if not the last two; as in `scale_by_muon`. Each
            matrix of a stack keeps its own norm.

    Raises ValueError without params, for a leaf with fewer than two axes, and for a rule with a learning rate.

    Wen et al. 2026, arXiv:2606.16899.

    >>> import jax.numpy as jnp
    >>> from functional_opt import identity
    >>> tx, w = hyperball(identity(), 0.75), jnp.array([[0.0, 0.0, 5.0]])
    >>> u, _ = tx.update(jnp.array([[0.1, 0.0, 0.0]]), tx.init(w), w)
    >>> (w + u).round(4).tolist()
    [[-3.0, 0.0, 4.0]]
    """

    preconditions = True
    stacks_matrices = True
    inner: Transformation
    learning_rate: Rate
    weight_dimension_numbers: Static[MuonNumbers | None] = None

    def __post_init__(self):
        for _, _, link, _ in walk(self.inner):
            if isinstance(link, scale_by_learning_rate) and link.flip_sign:
                raise ValueError(
                    f"inner must be a rule without a learning rate, such as scale_by_adam(); it has {link!r}, whose "
                    "minus sign would turn the steps uphill"
                )

    def init(self, params):
        needs_matrices(params, "params")
        return HyperballState(zero_count(), self.inner.init(params))

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        needs_matrices(updates)
        u, inner_state = self.inner.update(
            widen_tree(updates, "updates"), state.inner_state, widen_params(params), **extra
        )
        rate, stacks = rate_at(self.learning_rate, state.count), Stacks(self.weight_dimension_numbers, updates)

        def leaf(u, w):
            size = matrix_norm(w)
            step = rate * size * u / nonzero(matrix_norm(u))
            shrink = size / nonzero(matrix_norm(w - step))
            return (shrink - 1) * w - shrink * step  # small elements keep their digits

        like = stacks.stack(params)
        new = map_leaves(leaf, stacks.stack(u), read=(like,), params=like)
        return stacks.back(new), HyperballState(increment(state.count), inner_state)
