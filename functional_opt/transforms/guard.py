"""apply_if_finite: steps that are skipped."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..base import GradientTransformation, Transformation, increment, transformation, zero_count
from ..leaves import Tree, all_finite, cast_like, map_leaves
from ..value import Count


class ApplyIfFiniteState(NamedTuple):
    """`notfinite_count`: skipped in a row. `last_finite`: bool. `total_notfinite`: all not finite so far."""

    notfinite_count: jax.Array
    last_finite: jax.Array
    total_notfinite: jax.Array
    inner_state: Any


@transformation
class apply_if_finite(GradientTransformation):
    """Skips a step (zero updates, the inner state as it was) whose gradients have an inf or NaN.

    After `max_consecutive_errors` in a row the next one is let through, so that training does not go on
    for ever without moving.

    Args:
        inner: the transformation to guard.
        max_consecutive_errors: how many steps in a row may be skipped, ≥ 0.

    >>> from functional_opt import scale
    >>> tx = apply_if_finite(scale(-1.0), max_consecutive_errors=5)
    >>> u, state = tx.update({"w": float("nan")}, tx.init({"w": 0.0}))
    >>> u["w"].item(), int(state.total_notfinite)
    (0.0, 1)
    """

    inner: Transformation
    max_consecutive_errors: Count

    def init(self, params):
        return ApplyIfFiniteState(zero_count(), jnp.array(True), zero_count(), self.inner.init(params))

    def update(self, updates, state, params=None, **extra):
        finite = all_finite(updates)
        errors = jnp.where(finite, 0, increment(state.notfinite_count))
        total = jnp.where(finite, state.total_notfinite, increment(state.total_notfinite))
        updates, inner_state = update_if(
            finite | (errors > self.max_consecutive_errors), self.inner, updates, state.inner_state, params, extra
        )
        return updates, ApplyIfFiniteState(errors, finite, total, inner_state)


def update_if(
    condition: jax.Array, tx: GradientTransformation, updates: Tree, state: Any, params: Tree, extra: dict
) -> tuple[Tree, Any]:
    """`tx.update` where the condition holds, else zero updates and the state as it was; one of them runs."""

    def run():
        new, new_state = tx.update(updates, state, params, **extra)
        return cast_like(new, updates if params is None else params), cast_like(new_state, state)

    def skip():
        return map_leaves(jnp.zeros_like, updates, params=params), state

    return jax.lax.cond(condition, run, skip)
