"""apply_if_finite, zero_nans: handling of gradients that are not finite."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core import kernels
from ...core.leaves import Tree, cast_tree_like, map_leaves
from ...core.norms import all_finite
from ...core.ranges import Count
from ...core.slots import Counter, Number, States
from ...core.transformation import GradientTransformation, Transformation, increment, transformation, zero_count


class ApplyIfFiniteState(NamedTuple):
    """`notfinite_count`: non-finite steps in a row. `last_finite`: bool. `total_notfinite`: those so far."""

    notfinite_count: Counter
    last_finite: Number
    total_notfinite: Counter
    inner_state: States


@transformation
class apply_if_finite(GradientTransformation):
    """Skips a step (zero updates, unchanged inner state) whose gradients have an inf or NaN.

    After `max_consecutive_errors` skips in a row the next step is let through, so that training does not stand still
    forever.

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


class ZeroNansState(NamedTuple):
    """`found_nan`: for each leaf, whether the last gradient had a NaN: bool, shape ()."""

    found_nan: Number


@transformation
class zero_nans(GradientTransformation):
    """Sets NaN elements to 0: u = 0 where g is NaN, else g. The state records which leaves had any.

    >>> tx = zero_nans()
    >>> u, state = tx.update({"w": jnp.array([1.0, jnp.nan])}, tx.init({"w": jnp.zeros(2)}))
    >>> u["w"].tolist(), bool(state.found_nan["w"])
    ([1.0, 0.0], True)
    """

    def init(self, params):
        return ZeroNansState(jax.tree.map(lambda _: jnp.array(False), params))

    def update(self, updates, state, params=None, **extra):
        def leaf(g, found):
            bad = jnp.isnan(g)
            return jnp.where(bad, 0, g), jnp.any(bad)

        updates, found = map_leaves(leaf, updates, state.found_nan, params=params, same_shape=False)
        return updates, ZeroNansState(found)


def update_if(
    condition: jax.Array,
    tx: GradientTransformation,
    updates: Tree,
    state: Any,
    params: Tree,
    extra: dict,
    otherwise: Callable = jnp.zeros_like,
) -> tuple[Tree, Any]:
    """Runs `tx.update` if the condition holds, else applies `otherwise` to each leaf and keeps the old state."""

    def pure(updates, state, params):
        def run():
            new, new_state = tx.update(updates, state, params, **extra)
            return cast_tree_like(new, updates if params is None else params), cast_tree_like(new_state, state)

        def skip():
            return map_leaves(otherwise, updates, params=params), state

        return jax.lax.cond(condition, run, skip)

    def operations():
        links = kernels.operations_of(tx, state, params)
        return None if links is None else (kernels.KernelOp("gate", (condition,)), *links)

    if otherwise is not jnp.zeros_like:
        return pure(updates, state, params)
    return kernels.step_of(operations, pure, updates, state, params)
