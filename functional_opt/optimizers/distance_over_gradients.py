"""scale_by_distance_over_gradients: DoG with a step size for each leaf."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static
from ..core.leaves import copy_of, map_leaves
from ..core.norms import abs_sq, global_norm, safe_sqrt
from ..core.ranges import DType, NonNegative, Real
from ..core.slots import Number, Params
from ..core.transformation import GradientTransformation, needs_params, transformation
from .distance import safe_divide_by_root


class ScaleByDistanceOverGradientsState(NamedTuple):
    """`max_dist`: r. `grad_sum_of_squares`: G. `init_params`: w₀. All are per leaf."""

    max_dist: Number
    grad_sum_of_squares: Number
    init_params: Params


@transformation
class scale_by_distance_over_gradients(GradientTransformation):
    """L-DoG's step, per leaf: u = global_scale · r·g / √(G + eps).

    For each leaf, r is the largest ‖w − w₀‖ so far, at least reps_rel · (1 + ‖w₀‖), and G is the sum of all ‖g‖².

    Args:
        reps_rel: sets the initial r, ≥ 0.
        eps: added to G inside the root, ≥ 0.
        param_dtype: storage dtype of w₀. None means the params' dtype, or float32 for 16-bit params.
        global_scale: a factor on the updates.

    Raises ValueError without params.

    Ivgi, Hinder & Carmon 2023, arXiv:2302.12022.

    >>> tx, w = scale_by_distance_over_gradients(0.5, eps=0.0), jnp.zeros(2)
    >>> tx.update(jnp.array([3.0, 4.0]), tx.init(w), w)[0].round(3).tolist()
    [0.30000001192092896, 0.4000000059604645]

    Differs from Optax: w₀ of 64-bit params is stored in 64 bits unless param_dtype says otherwise; G has shape ().
    """

    reps_rel: NonNegative = 1e-6
    eps: NonNegative = 1e-8
    param_dtype: Static[DType | None] = None
    global_scale: Real = 1.0

    def init(self, params):
        start = copy_of(params, self.param_dtype)

        def distance(x: jax.Array) -> jax.Array:
            norm = global_norm(x)
            return jnp.asarray(self.reps_rel * (1 + norm), norm.dtype)

        r = jax.tree.map(distance, start)
        return ScaleByDistanceOverGradientsState(r, jax.tree.map(jnp.zeros_like, r), start)

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)

        def leaf(g, r, squares, w, w0):
            r = jnp.maximum(r, safe_sqrt(jnp.sum(abs_sq(w - w0))))
            squares = squares + jnp.sum(abs_sq(g))
            return self.global_scale * safe_divide_by_root(r, squares, self.eps) * g, r, squares

        slots = (state.max_dist, state.grad_sum_of_squares)
        read = (params, state.init_params)
        updates, r, squares = map_leaves(leaf, updates, *slots, read=read, params=params, same_shape=False)
        return updates, ScaleByDistanceOverGradientsState(r, squares, state.init_params)
