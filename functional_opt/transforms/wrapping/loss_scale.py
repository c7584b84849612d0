"""dynamic_loss_scale, loss_scale: training in float16 with a loss scale that adapts itself."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.leaves import cast_tree_like, map_leaves, widen_tree
from ...core.norms import all_finite
from ...core.queries import find_one
from ...core.ranges import Positive, PositiveInt, Scalar
from ...core.slots import Counter, Number, States
from ...core.transformation import GradientTransformation, Transformation, increment, transformation, zero_count
from .guard import update_if


class DynamicLossScaleState(NamedTuple):
    """`scale`: of the loss. `good_steps`: finite steps since it last changed. `total_skipped`: skips so far."""

    scale: Number
    good_steps: Counter
    total_skipped: Counter
    inner_state: States


@transformation
class dynamic_loss_scale(GradientTransformation):
    """Divides the gradients of a scaled loss by its scale s, which it keeps as large as float16 allows.

    If all g/s are finite, the inner transformation gets them in float32, and s ← 2·s after `growth_interval` such
    steps. Otherwise the step is skipped (zero updates, unchanged inner state) and s ← max(s/2, min(min_scale, s)).
    Multiply the loss by `loss_scale(state)`::

        grads = jax.grad(lambda p: loss(p) * loss_scale(state))(params)
        updates, state = tx.update(grads, state, params)

    Place it outside of everything that reads gradients, such as clips and `MultiSteps`, except `with_metrics`.

    Args:
        inner: the transformation that gets the true gradients.
        initial_scale: the first s, > 0.
        growth_interval: steps after which s doubles, a whole number ≥ 1.
        min_scale: the smallest s, > 0.

    Micikevicius et al. 2017, arXiv:1710.03740.

    >>> from functional_opt import sgd
    >>> tx = dynamic_loss_scale(sgd(1.0), initial_scale=8.0)
    >>> state = tx.init({"w": 0.0})
    >>> u, after = tx.update({"w": 4.0 * loss_scale(state)}, state)
    >>> u["w"].item(), loss_scale(tx.update({"w": float("inf")}, after)[1]).item()
    (-4.0, 4.0)
    """

    inner: Transformation
    initial_scale: Positive = 2.0**15
    growth_interval: PositiveInt = 2000
    min_scale: Positive = 1.0

    def init(self, params):
        scale = jnp.asarray(self.initial_scale, jnp.zeros([]).dtype)
        return DynamicLossScaleState(scale, zero_count(), zero_count(), self.inner.init(params))

    def update(self, updates, state, params=None, **extra):
        grads = map_leaves(lambda g: g / state.scale, widen_tree(updates, "updates"))
        finite = all_finite(grads)
        new, inner_state = update_if(finite, self.inner, grads, state.inner_state, params, extra)
        scale, good = next_scale(state.scale, state.good_steps, finite, self.growth_interval, self.min_scale)
        total = jnp.where(finite, state.total_skipped, increment(state.total_skipped))
        new = cast_tree_like(new, updates if params is None else params)
        return new, DynamicLossScaleState(scale, good, total, inner_state)

    def reported(self, state: DynamicLossScaleState) -> dict[str, jax.Array]:
        """Returns what `with_metrics` records."""
        return {"loss_scale": state.scale}


def next_scale(
    scale: jax.Array, good_steps: jax.Array, finite: jax.Array, growth_interval: Scalar, min_scale: Scalar
) -> tuple[jax.Array, jax.Array]:
    """Returns the scale and count of good steps after a step that was finite or not; the scale never overflows."""
    good = jnp.where(finite, increment(good_steps), 0)
    grow = good >= growth_interval
    larger = jnp.where(grow & jnp.isfinite(scale * 2), scale * 2, scale)
    scale = jnp.where(finite, larger, jnp.maximum(scale / 2, jnp.minimum(min_scale, scale)))
    return scale, jnp.where(grow, 0, good)


def loss_scale(state: Any) -> jax.Array:
    """Returns the factor to multiply the loss by, from any state that contains one `dynamic_loss_scale`.

    Raises ValueError if there is none, or if there are several.

    >>> from functional_opt import adam
    >>> loss_scale(dynamic_loss_scale(adam(1e-3)).init({"w": 0.0})).item()
    32768.0
    """
    missing = "wrap the transformation in dynamic_loss_scale"
    return find_one(
        state, DynamicLossScaleState, "loss_scale", missing, several="only the outermost may have one"
    ).scale
