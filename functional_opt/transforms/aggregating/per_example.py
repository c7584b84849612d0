"""per_example_global_norm_clip, per_example_layer_norm_clip: clip each example's gradient, then sum."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from ...core.leaves import Tree, widen
from ...core.norms import abs_sq, safe_sqrt


def per_example_global_norm_clip(grads: Tree, l2_norm_clip: Any) -> tuple[Tree, jax.Array]:
    """Returns Σᵢ gᵢ · min(1, l2_norm_clip / ‖gᵢ‖) over examples i, and how many were clipped.

    Args:
        grads: a tree of per-example gradients, the examples along axis 0 of every leaf.
        l2_norm_clip: the largest norm of one example's gradient, all leaves taken as one vector.

    Raises ValueError if the leaves do not have the same number of examples.

    Abadi et al. 2016, arXiv:1607.00133.

    >>> total, clipped = per_example_global_norm_clip([jnp.array([[3.0, 4.0], [0.0, 0.25]])], 1.0)
    >>> total[0].round(3).tolist(), int(clipped)
    ([0.6000000238418579, 1.0500000715255737], 1)
    """
    leaves, treedef = _examples(grads)
    norms = safe_sqrt(sum(map(_squares, leaves), jnp.zeros([])))
    return treedef.unflatten([_sum(g, norms, l2_norm_clip) for g in leaves]), jnp.sum(norms > l2_norm_clip)


def per_example_layer_norm_clip(grads: Tree, global_l2_norm_clip: Any, uniform: bool = True) -> tuple[Tree, Tree]:
    """Returns the sum over examples, each leaf clipped to its share of the norm, and how many were clipped by leaf.

    The share of leaf k of K is C/√K if uniform, else C·√(its number of params / that of all leaves).

    Args:
        grads: a tree of per-example gradients, the examples along axis 0 of every leaf.
        global_l2_norm_clip: C, the largest norm of one example's clipped gradient.

    McMahan, Ramage, Talwar & Zhang 2017, arXiv:1710.06963.

    >>> total, clipped = per_example_layer_norm_clip([jnp.array([[3.0, 4.0], [0.0, 0.25]])], 1.0)
    >>> total[0].round(3).tolist(), int(clipped[0])
    ([0.6000000238418579, 1.0500000715255737], 1)
    """
    leaves, treedef = _examples(grads)
    sizes = [math.prod(g.shape[1:]) for g in leaves]
    shares = [1 / len(leaves) if uniform else size / sum(sizes) for size in sizes]
    bounds = [global_l2_norm_clip * math.sqrt(share) for share in shares]
    norms = [safe_sqrt(_squares(g)) for g in leaves]
    sums = [_sum(g, norm, bound) for g, norm, bound in zip(leaves, norms, bounds, strict=True)]
    clipped = [jnp.sum(norm > bound) for norm, bound in zip(norms, bounds, strict=True)]
    return treedef.unflatten(sums), treedef.unflatten(clipped)


def _examples(grads: Tree) -> tuple[list, Any]:
    leaves, treedef = jax.tree.flatten(grads)
    leaves = [jnp.asarray(g) for g in leaves]
    shapes = [g.shape for g in leaves]
    if any(not shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"the number of examples must be the same along axis 0 of every leaf, got shapes {shapes}")
    return leaves, treedef


def _squares(g: jax.Array) -> jax.Array:
    """Returns ‖gᵢ‖² of one leaf for every example i, summed in float32."""
    return jnp.sum(abs_sq(_wide(g)), axis=tuple(range(1, g.ndim)))


def _sum(g: jax.Array, norms: jax.Array, largest: Any) -> jax.Array:
    factors = jnp.minimum(1.0, largest / jnp.where(norms == 0, 1.0, norms))
    total = jnp.tensordot(factors.astype(_wide(g).dtype), _wide(g), axes=1, precision="highest")
    return total.astype(g.dtype) if jnp.issubdtype(g.dtype, jnp.inexact) else total


def _wide(g: jax.Array) -> jax.Array:
    return widen(g) if jnp.issubdtype(g.dtype, jnp.inexact) else g.astype(jnp.float32)
