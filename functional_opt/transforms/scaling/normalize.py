"""centralize, normalize, normalize_by_update_norm: gradients with mean zero, or with a given norm."""

import jax.numpy as jnp

from ...core.leaves import Tree, map_leaves
from ...core.norms import global_norm
from ...core.ranges import NonNegative, Real
from ...core.transformation import EmptyState, GradientTransformation, transformation

NormalizeState = EmptyState


@transformation
class centralize(GradientTransformation):
    """Subtracts the mean over all axes but the first, u = g − mean(g); vectors and scalars do not change.

    Yong, Huang, Hua & Zhang 2020, arXiv:2004.01461.

    >>> centralize().update(jnp.array([[1.0, 3.0], [2.0, 2.0]]), EmptyState())[0].tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        def leaf(g):
            return g - jnp.mean(g, axis=tuple(range(1, g.ndim)), keepdims=True) if jnp.ndim(g) > 1 else g

        return map_leaves(leaf, updates, params=params), state


@transformation
class normalize(GradientTransformation):
    """Divides the updates by their global norm, which is summed in float32: u = g / ‖g‖, or 0 if that is 0.

    Hazan, Levy & Shalev-Shwartz 2015, arXiv:1507.02030.

    >>> normalize().update(jnp.array([3.0, 4.0]), EmptyState())[0].round(3).tolist()
    [0.6000000238418579, 0.800000011920929]

    Differs from Optax: zero gradients give zeros, where Optax gives NaN.
    """

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        norm = global_norm(updates)
        return _times(updates, 1 / jnp.where(norm == 0, 1.0, norm), params), state


@transformation
class normalize_by_update_norm(GradientTransformation):
    """Scales the updates to a global norm, which is summed in float32: u = scale_factor · g / (‖g‖ + eps).

    Args:
        scale_factor: the norm of the result, apart from eps; of any sign.
        eps: ≥ 0. With eps=0 zero gradients give zeros.

    >>> normalize_by_update_norm(2.0, eps=1.0).update(jnp.array([3.0, 4.0]), EmptyState())[0][0].item()
    1.0
    """

    scale_factor: Real = 1.0
    eps: NonNegative = 1e-6

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        length = global_norm(updates) + self.eps
        return _times(updates, self.scale_factor / jnp.where(length == 0, 1.0, length), params), state


def _times(updates: Tree, factor, params: Tree) -> Tree:
    return map_leaves(lambda g: factor * g, updates, params=params)
