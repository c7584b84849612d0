"""clip, clip_by_norm, clip_by_global_norm, clip_by_block_rms, adaptive_grad_clip: bounds on the updates."""

from typing import Any

import jax
import jax.numpy as jnp

from ...core import kernels
from ...core.checks import Static
from ...core.leaves import Tree, map_leaves
from ...core.norms import abs_sq, global_norm, safe_sqrt, sums_of_squares
from ...core.ranges import Bound, NonNegative, PositiveBound, Scalar
from ...core.transformation import EmptyState, GradientTransformation, needs_params, transformation

AdaptiveGradClipState = ClipByGlobalNormState = ClipState = EmptyState
"""Optax's names for the state, for older scripts."""


@transformation
class clip(GradientTransformation):
    """Bounds every element, or its modulus if complex: u = min(max(g, −max_delta), max_delta).

    Args:
        max_delta: the largest size of an element, ≥ 0.

    >>> clip(1.0).update(jnp.array([-3.0, 0.5]), EmptyState())[0].tolist()
    [-1.0, 0.5]
    """

    clips = True
    max_delta: Bound

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        def leaf(g):
            if jnp.iscomplexobj(g):
                return g * shrink(safe_sqrt(abs_sq(g)), self.max_delta)
            return jnp.clip(g, -self.max_delta, self.max_delta)

        return map_leaves(leaf, updates, params=params), state

    def as_kernel(self, state, params):
        return (kernels.KernelOp("clip", (self.max_delta,)),)


@transformation
class clip_by_norm(GradientTransformation):
    """Bounds the norm of each leaf: u = g · min(1, max_norm / ‖g‖), as `tf.clip_by_norm` does.

    Args:
        max_norm: the largest norm of a leaf, ≥ 0.

    >>> clip_by_norm(1.0).update({"a": jnp.array([3.0, 4.0]), "b": 0.5}, EmptyState())[0]["a"].round(3).tolist()
    [0.6000000238418579, 0.800000011920929]
    """

    clips = True
    max_norm: Bound

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        return map_leaves(lambda g: g * shrink(global_norm(g), self.max_norm), updates, params=params), state


@transformation
class clip_by_global_norm(GradientTransformation):
    """Bounds the norm of all leaves as one vector: u = g · min(1, max_norm / ‖g‖).

    The norm is summed in float32. A leaf with a NaN keeps it but is left out of the norm, so that the NaN does not
    spread to the other leaves. A norm that overflows to infinity makes every finite leaf zero.

    Args:
        max_norm: the largest norm, ≥ 0.

    Pascanu, Mikolov & Bengio 2012, arXiv:1211.5063.

    >>> u, _ = clip_by_global_norm(1.0).update({"a": 3.0, "b": 4.0}, EmptyState())
    >>> round(u["a"].item(), 3), round(u["b"].item(), 3)
    (0.6, 0.8)

    Differs from Optax: all leaves are multiplied by one scalar, where Optax divides and selects leaf by leaf; a NaN
    stays in its leaf; `max_norm=0` gives zeros.
    """

    clips = True
    max_norm: Bound

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        factor = _factor(sums_of_squares(updates), self.max_norm)
        return map_leaves(lambda g: g * factor, updates, params=params), state

    def as_kernel(self, state, params):
        return (kernels.KernelOp("scale", (self.max_norm,), squares=_factor),)


def _factor(squares: jax.Array, max_norm: Scalar) -> jax.Array:
    return shrink(_norm(squares), max_norm)


@transformation
class clip_by_block_rms(GradientTransformation):
    """Bounds the root mean square of each leaf: u = g · min(1, threshold / RMS(g)).

    Args:
        threshold: the largest root mean square of a leaf, > 0.

    Shazeer & Stern 2018, arXiv:1804.04235, section 6.

    >>> clip_by_block_rms(1.0).update(jnp.full(4, 3.0), EmptyState())[0].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    clips = True
    threshold: PositiveBound

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        def leaf(g):
            return g * shrink(safe_sqrt(jnp.mean(abs_sq(g))), self.threshold)

        return map_leaves(leaf, updates, params=params), state


@transformation
class adaptive_grad_clip(GradientTransformation):
    """Bounds the gradient of each unit by its weights: u = g · min(1, clipping·max(‖w‖, eps) / ‖g‖).

    A unit is an output of a layer. Norms are taken over all axes but the last of a kernel with up to 5 axes (over
    axis 0 for 2 and 3 axes), over a complete vector or scalar, or over `axis`.

    Args:
        clipping: the largest ratio of the gradient's norm to that of the weights, ≥ 0.
        eps: the smallest norm that weights count with, ≥ 0.
        axis: the axes of a unit, an int or a tuple of ints; if None, by the rule above.

    Raises ValueError without params.

    Brock, De, Smith & Simonyan 2021, arXiv:2102.06171.

    >>> tx = adaptive_grad_clip(0.1)
    >>> u, _ = tx.update({"w": jnp.full((4, 2), 5.0)}, tx.init(None), {"w": jnp.ones((4, 2))})
    >>> round(u["w"][0, 0].item(), 3)
    0.1
    """

    clips = True
    clipping: Bound
    eps: NonNegative = 1e-3
    axis: Static[int | tuple[int, ...] | None] = None

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)

        def leaf(g, w):
            largest = self.clipping * jnp.maximum(_unit_norms(w, self.axis), self.eps)
            return g * shrink(_unit_norms(g, self.axis), largest)

        return map_leaves(leaf, updates, read=(params,), params=params), state


def unitwise_norm(x: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """Returns the norm of each unit of a leaf, at every element of the unit. See `adaptive_grad_clip`.

    >>> unitwise_norm(jnp.array([[3.0], [4.0]])).tolist()
    [[5.0], [5.0]]
    """
    return jnp.broadcast_to(_unit_norms(x, axis), jnp.shape(x))


def _unit_norms(x: jax.Array, axis: int | tuple[int, ...] | None) -> jax.Array:
    """Returns the norm of each unit, keeping the unit's axes at length 1."""
    x = jnp.asarray(x)
    if axis is None and x.ndim > 1 and x.size not in x.shape:  # neither a scalar nor a vector
        if x.ndim > 5:
            raise ValueError(f"a leaf of shape {x.shape} has no standard units; pass `axis`")
        # 3 axes are a multi-headed linear layer, (inputs, heads, outputs); 4 and 5 a convolution's kernel
        axis = 0 if x.ndim < 4 else tuple(range(x.ndim - 1))
    return safe_sqrt(jnp.sum(abs_sq(x), axis=axis, keepdims=True))


def unitwise_clip(g_norm: jax.Array, max_norm: Scalar, grad: jax.Array, div_eps: Scalar = 1e-6) -> jax.Array:
    """Bounds the units of a leaf, which have the norms `g_norm`, by `max_norm`: grad · min(1, max_norm / g_norm).

    Args:
        g_norm: the norm of each unit of `grad`, as `unitwise_norm` gives it.
        max_norm: the largest norm, for each unit or for all.
        div_eps: the smallest norm to divide by.

    >>> unitwise_clip(jnp.array([5.0]), 1.0, jnp.array([3.0, 4.0])).round(3).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    return grad * jnp.where(g_norm < max_norm, 1.0, max_norm / jnp.maximum(g_norm, div_eps))


def norm_without_nans(tree: Tree) -> jax.Array:
    """Returns the global norm of the leaves that have no NaN."""
    return _norm(sums_of_squares(tree))


def _norm(squares: jax.Array) -> jax.Array:
    return safe_sqrt(jnp.sum(jnp.where(jnp.isnan(squares), 0.0, squares)))


def shrink(size: jax.Array, largest: Any) -> jax.Array:
    """Returns min(1, largest / size), or 1 where size is 0."""
    return jnp.minimum(1.0, largest / jnp.where(size == 0, 1.0, size))
