"""conditionally_transform, conditionally_mask: a transformation that runs only at some steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.checks import Static
from ...core.slots import Counter, States
from ...core.transformation import GradientTransformation, Transformation, increment, transformation, zero_count
from .guard import update_if

ConditionFn = Callable[..., Any]
"""`f(step, **extra)`, which returns a bool scalar; see `conditionally_transform`."""


class ConditionallyTransformState(NamedTuple):
    """`inner_state`: the inner state. `step`: steps done, including those without the inner transformation."""

    inner_state: States
    step: Counter


class ConditionallyMaskState(NamedTuple):
    """`step`: steps done, including those without the inner transformation. `inner_state`: the inner state."""

    step: Counter
    inner_state: States


@transformation
class conditionally_transform(GradientTransformation):
    """Runs the inner transformation at the steps that a function selects; otherwise passes the updates on.

    At other steps the inner state does not change. Only one of the two branches is computed, under a real `cond`.

    Args:
        inner: a gradient transformation.
        should_transform_fn: `f(step) -> bool scalar`, where step is an int32 that starts at 0.
        forward_extra_args: whether the function also gets the extra arguments of `update`.

    Raises ValueError if the function returns something else.

    >>> from functional_opt import scale
    >>> tx = conditionally_transform(scale(-1.0), lambda step: step >= 1)
    >>> u, state = tx.update({"w": 3.0}, tx.init({"w": 0.0}))
    >>> u["w"].item(), tx.update({"w": 3.0}, state)[0]["w"].item()
    (3.0, -3.0)
    """

    inner: Transformation
    should_transform_fn: Static[Callable]
    forward_extra_args: Static[bool] = False

    def init(self, params):
        return ConditionallyTransformState(self.inner.init(params), zero_count())

    def update(self, updates, state, params=None, **extra):
        now = _now(self, state.step, extra)
        updates, inner = update_if(now, self.inner, updates, state.inner_state, params, extra, lambda g: g)
        return updates, ConditionallyTransformState(inner, increment(state.step))


@transformation
class conditionally_mask(GradientTransformation):
    """Runs the inner transformation at the steps that a function selects; otherwise gives zero updates.

    Args:
        inner, should_transform_fn, forward_extra_args: as in `conditionally_transform`.

    >>> from functional_opt import scale
    >>> tx = conditionally_mask(scale(-1.0), lambda step: step >= 1)
    >>> u, state = tx.update({"w": 3.0}, tx.init({"w": 0.0}))
    >>> u["w"].item(), tx.update({"w": 3.0}, state)[0]["w"].item()
    (0.0, -3.0)
    """

    inner: Transformation
    should_transform_fn: Static[Callable]
    forward_extra_args: Static[bool] = False

    def init(self, params):
        return ConditionallyMaskState(zero_count(), self.inner.init(params))

    def update(self, updates, state, params=None, **extra):
        now = _now(self, state.step, extra)
        updates, inner = update_if(now, self.inner, updates, state.inner_state, params, extra)
        return updates, ConditionallyMaskState(increment(state.step), inner)


def _now(self: Any, step: jax.Array, extra: dict) -> jax.Array:
    now = self.should_transform_fn(step, **(extra if self.forward_extra_args else {}))
    if jnp.shape(now) != () or jnp.result_type(now) != jnp.bool_:
        raise ValueError(f"should_transform_fn must return a bool scalar, got {now!r}")
    return jnp.asarray(now)
