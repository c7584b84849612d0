"""conditionally_transform, conditionally_mask: a transformation that runs at some steps only."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.slots import Counter, States
from ...core.transformation import GradientTransformation, Transformation, increment, transformation, zero_count
from ...core.value import Static
from ..wrapping.guard import update_if

ConditionFn = Callable[..., Any]
"""`f(step, **extra)`, a bool scalar; see `conditionally_transform`."""


class ConditionallyTransformState(NamedTuple):
    """`inner_state`: that of the inner transformation. `step`: steps done, also those it did not run at."""

    inner_state: States
    step: Counter


class ConditionallyMaskState(NamedTuple):
    """`step`: steps done, also those the inner transformation did not run at. `inner_state`: its state."""

    step: Counter
    inner_state: States


@transformation
class conditionally_transform(GradientTransformation):
    """Runs the inner transformation where a function of the step says so; passes the updates on otherwise.

    Its state does not change where it does not run; one of the two is computed, under a real `cond`.

    Args:
        inner: a gradient transformation.
        should_transform_fn: `f(step) -> bool scalar`, the step being an int32 that starts at 0.
        forward_extra_args: whether it gets the extra arguments of `update` too.

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
    """The same, with zero updates at the steps at which the inner transformation does not run.

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
