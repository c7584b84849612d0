"""weight_normalized: matrices whose directions and magnitudes have an optimizer each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.checks import Static
from ...core.leaves import copy_of, map_leaves, widen, widen_params, widen_tree
from ...core.norms import abs_sq, nonzero, safe_sqrt
from ...core.slots import Params, States
from ...core.transformation import GradientTransformation, Transformation, needs_params, transformation
from ..matrices.dimension_numbers import MuonNumbers, Stacks
from ..matrices.orthogonalize import needs_matrices


class WeightNormalizedState(NamedTuple):
    """`direction_state`, `magnitude_state`: of both optimizers.

    `magnitude`, `size`: g and ‖v‖ of each column, in the shape (..., 1, columns).
    """

    direction_state: States
    magnitude_state: States
    magnitude: Params
    size: Params


@transformation
class weight_normalized(GradientTransformation):
    """Trains v and g in place of w = g · v / ‖v‖, with one g for each column, the weights of a neuron.

    With G the gradient and n = w / g the unit columns, ∂g = Σ n·G over each column and ∂v = (g / ‖v‖) · (G − n · ∂g).
    Both optimizers take a step, and the update is the difference of the two w. At first v = w and g = ‖w‖. The params
    stay w, and the state holds g and ‖v‖ only, as v = n · ‖v‖.

    As ∂v is orthogonal to v, ‖v‖ grows and turns get smaller, whatever the size of w. Weight decay belongs to the
    magnitudes: that of v would only undo this. A column of zeros stays as it is: leave it to another rule, or start
    it from small random numbers.

    Args:
        direction: the optimizer of v, with its learning rate, such as a chain of `orthogonalize`.
        magnitude: that of g. Its params have the shape (..., 1, columns).
        weight_dimension_numbers: which axes of a leaf are rows (inputs) and columns, if not the last two; as in
            `scale_by_muon`.

    Raises ValueError without params, or for a leaf with fewer than two axes.

    Salimans & Kingma 2016, arXiv:1602.07868; within an optimizer, Lion et al. 2026, arXiv:2605.10797.

    >>> from functional_opt import sgd
    >>> tx, w = weight_normalized(sgd(2.0), sgd(0.5)), jnp.array([[0.0], [2.0]])
    >>> u, state = tx.update(jnp.array([[0.75], [1.0]]), tx.init(w), w)
    >>> state.magnitude.tolist(), state.size.tolist(), bool(jnp.allclose(w + u, jnp.array([[-0.9], [1.2]])))
    ([[1.5]], [[2.5]], True)
    """

    stacks_matrices = True
    direction: Transformation
    magnitude: Transformation
    weight_dimension_numbers: Static[MuonNumbers | None] = None

    def init(self, params):
        needs_matrices(params, "params")
        sizes = jax.tree.map(_sizes_of, Stacks(self.weight_dimension_numbers, params).stack(params))
        size, magnitude = copy_of(sizes), copy_of(sizes)
        return WeightNormalizedState(self.direction.init(params), self.magnitude.init(magnitude), magnitude, size)

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        needs_matrices(updates)
        stacks = Stacks(self.weight_dimension_numbers, updates)
        like = stacks.stack(params)
        w, g, r = widen_params(like), state.magnitude, state.size

        def gradient_of_g(grad, w, g):
            return jnp.sum((w.conj() * grad).real, axis=-2, keepdims=True) / _divisor(g)

        def gradient_of_v(grad, g, r, w):
            return g / nonzero(r) * (grad - w / _divisor(g) * gradient_of_g(grad, w, g)), g, r

        def direction(w, g, r):
            return w / _divisor(g) * r

        def moved(step, r, w, g, new_g):
            new_r = _sizes(direction(w, g, r) + step)
            scale = new_g / nonzero(new_r)
            return (scale * r / _divisor(g) - 1) * w + scale * step, new_r

        grads = stacks.stack(widen_tree(updates, "updates"))
        of_v, *_ = map_leaves(gradient_of_v, grads, g, r, read=(w,), same_shape=False)
        of_g = map_leaves(gradient_of_g, grads, read=(w, g), params=g, same_shape=False)
        v = stacks.back(map_leaves(direction, w, read=(g, r), same_shape=False))
        step, direction_state = self.direction.update(stacks.back(of_v), state.direction_state, v, **extra)
        change, magnitude_state = self.magnitude.update(of_g, state.magnitude_state, g, **extra)
        _, new_g = map_leaves(lambda u, g: (u, g + u), change, g)
        new, new_r = map_leaves(moved, stacks.stack(step), r, read=(w, g, new_g), params=like, same_shape=False)
        return stacks.back(new), WeightNormalizedState(direction_state, magnitude_state, new_g, new_r)


def _sizes_of(w: Any) -> Any:
    return jax.eval_shape(_sizes, w) if isinstance(w, jax.ShapeDtypeStruct) else _sizes(w)


def _sizes(w: Any) -> jax.Array:
    """Returns the norms of a matrix's columns, or of those of each of a stack, in the shape (..., 1, columns)."""
    return safe_sqrt(jnp.sum(abs_sq(widen(w)), axis=-2, keepdims=True))


def _divisor(g: Any) -> jax.Array:
    """Returns g, of any sign, as a divisor, with 1 in place of 0."""
    return jnp.where(g == 0, 1.0, g)
