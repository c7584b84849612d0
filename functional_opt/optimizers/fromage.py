"""Fromage: steps relative to the norm of the weights, corrected so that the weights do not grow."""

import jax.numpy as jnp

from ..core.leaves import map_leaves
from ..core.norms import global_norm
from ..core.ranges import NonNegative
from ..core.schedule import Rate, Schedule
from ..core.transformation import EmptyState, GradientTransformation, needs_params, transformation, zero_count
from ..transforms.scaling.learning_rate import ScaleByScheduleState, rate_now


@transformation
class fromage(GradientTransformation):
    """Fromage: w ← (w − learning_rate · g · ‖w‖ / ‖g‖) / √(1 + learning_rate²), norms per leaf.

    The ratio of norms is 1 where either is 0. This is a complete optimizer: do not add `scale_by_learning_rate` after
    it.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 0.01 is usual.
        min_norm: lower bound of both norms, ≥ 0.

    Raises ValueError without params.

    Bernstein et al. 2020, arXiv:2002.03432.

    >>> tx, w = fromage(0.75), jnp.array([3.0, 4.0])
    >>> u, _ = tx.update(jnp.array([0.0, 1.0]), tx.init(w), w)
    >>> [round(x, 3) for x in (w + u).tolist()]
    [2.4, 0.2]

    Differs from Optax in that it is one transformation with one count.
    """

    learning_rate: Rate
    min_norm: NonNegative = 1e-6

    def init(self, params):
        return ScaleByScheduleState(zero_count()) if isinstance(self.learning_rate, Schedule) else EmptyState()

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        rate, state = rate_now(self.learning_rate, state)
        root = jnp.sqrt(1 + rate**2)
        shrinkage = rate**2 / (root * (1 + root))  # 1 − 1 / root, without cancellation

        def leaf(g, w):
            of_w, of_g = (jnp.maximum(global_norm(x), self.min_norm) for x in (w, g))
            both = (of_w > 0) & (of_g > 0)
            ratio = jnp.where(both, of_w / jnp.where(both, of_g, 1.0), 1.0)
            return -rate / root * ratio * g - shrinkage * w

        return map_leaves(leaf, updates, read=(params,), params=params), state
