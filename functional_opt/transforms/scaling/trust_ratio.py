"""scale_by_trust_ratio, scale_by_param_block_norm, scale_by_param_block_rms: scale by the weights' size."""

import jax
import jax.numpy as jnp

from ...core.leaves import Tree, map_leaves
from ...core.norms import abs_sq, global_norm, safe_sqrt
from ...core.ranges import NonNegative
from ...core.transformation import EmptyState, GradientTransformation, needs_params, transformation

ScaleByTrustRatioState = EmptyState
"""Optax's name for the state, for older scripts."""


@transformation
class scale_by_trust_ratio(GradientTransformation):
    """Makes each leaf's update proportional to its weights: u = g · trust_coefficient · ‖w‖ / (‖g‖ + eps).

    u = g where ‖w‖ or ‖g‖ is 0. Norms are taken leaf by leaf.

    Args:
        min_norm: the smallest value that either norm counts with, ≥ 0.
        trust_coefficient: the ratio of the update's norm to that of the weights, ≥ 0.
        eps: ≥ 0.

    Raises ValueError without params.

    You, Gitman & Ginsburg 2017, arXiv:1708.03888.

    >>> tx = scale_by_trust_ratio(trust_coefficient=0.1)
    >>> tx.update({"w": jnp.array([0.0, 2.0])}, tx.init(None), {"w": jnp.array([3.0, 4.0])})[0]["w"].tolist()
    [0.0, 0.5]
    """

    min_norm: NonNegative = 0.0
    trust_coefficient: NonNegative = 1.0
    eps: NonNegative = 0.0

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)

        def leaf(g, w):
            of_w, of_g = (jnp.maximum(global_norm(x), self.min_norm) for x in (w, g))
            apart = (of_w > 0) & (of_g > 0)
            ratio = self.trust_coefficient * of_w / jnp.where(apart, of_g + self.eps, 1.0)
            return g * jnp.where(apart, ratio, 1.0)

        return map_leaves(leaf, updates, read=(params,), params=params), state


@transformation
class scale_by_param_block_norm(GradientTransformation):
    """Multiplies each leaf's update by the norm of its weights: u = g · max(‖w‖, min_scale).

    Args:
        min_scale: the smallest factor, ≥ 0; without it a leaf of zeros would never move.

    Raises ValueError without params.

    >>> tx = scale_by_param_block_norm()
    >>> tx.update({"w": jnp.ones(2)}, tx.init(None), {"w": jnp.array([3.0, 4.0])})[0]["w"].tolist()
    [5.0, 5.0]
    """

    min_scale: NonNegative = 1e-3

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        return _times_size(global_norm, updates, self.min_scale, params), state


@transformation
class scale_by_param_block_rms(GradientTransformation):
    """Makes the learning rate relative to the size of each leaf's weights: u = g · max(RMS(w), min_scale).

    Args:
        min_scale: the smallest factor, ≥ 0; without it a leaf of zeros would never move.

    Raises ValueError without params.

    Shazeer & Stern 2018, arXiv:1804.04235, section 8.

    >>> tx = scale_by_param_block_rms()
    >>> tx.update({"w": jnp.ones(2)}, tx.init(None), {"w": jnp.array([3.0, -3.0])})[0]["w"].tolist()
    [3.0, 3.0]
    """

    min_scale: NonNegative = 1e-3

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        return _times_size(root_mean_square, updates, self.min_scale, params), state


def root_mean_square(x: jax.Array) -> jax.Array:
    """Returns the root of the mean of |x|², with derivative 0 at 0."""
    return safe_sqrt(jnp.mean(abs_sq(x)))


def _times_size(size, updates: Tree, least, params: Tree) -> Tree:
    return map_leaves(lambda g, w: g * jnp.maximum(size(w), least), updates, read=(params,), params=params)
