"""MultiSteps, apply_every: one update from the gradients of several mini-steps."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core import kernels
from ...core.checks import Static
from ...core.leaves import Tree, cast_like, cast_tree_like, map_leaves, zeros_like
from ...core.norms import all_finite, sums_of_squares
from ...core.ranges import DType, Integer, PositiveInt, Range
from ...core.schedule import OrSchedule, Schedule
from ...core.slots import Counter, Exact, Number, States
from ...core.transformation import GradientTransformation, Transformation, increment, transformation, zero_count
from .guard import update_if


class MultiStepsState(NamedTuple):
    """`mini_step`: gradients in the current window. `gradient_step`: updates done.

    `acc_grads`, `weight_sum`: mean or sum of the gradients in the current window, and the sum of their weights.
    """

    mini_step: Counter
    gradient_step: Counter
    inner_opt_state: States
    acc_grads: Exact
    skip_state: States = ()
    weight_sum: Number = 0.0


ShouldSkipUpdateFunction = Callable[[Tree, jax.Array, Tree], tuple[jax.Array, Any]]
"""`f(updates, gradient_step, params) -> (skip, info)`; see `MultiSteps`."""


@transformation
class MultiSteps(GradientTransformation):
    """Accumulates gradients over k mini-steps and updates once, with their mean.

    a ← a + (g − a)/(n + 1) for the n-th mini-step, n = 0 … k−1. After the last one u = opt(a) and a ← 0; at all
    others u = 0. The inner transformation runs only after the last one, under a real `cond`.

    To weight mini-batches by their size, call `update(..., weight=size)`: a ← a + (g − a)·weight/Σ weights, or
    a ← a + weight·g for the sum. `flush(state, params)` updates with the gradients of an incomplete window, for
    example at the end of an epoch.

    Args:
        opt: the transformation that gets the accumulated gradients.
        every_k_schedule: k ≥ 1, or a function of the number of updates done.
        use_grad_mean: whether to use the mean; otherwise the sum.
        should_skip_update_fn: `f(updates, gradient_step, params) -> (skip, info)`. If `skip`, a bool scalar, is True,
            the mini-step is ignored. `info` is kept in the state.
        accumulator_dtype: the dtype of `acc_grads`.

    `update` raises ValueError for a weight below 0, and TypeError for one that is not a number.

    >>> from functional_opt import sgd
    >>> tx = MultiSteps(sgd(1.0), every_k_schedule=2)
    >>> state = tx.init({"w": 0.0})
    >>> u, state = tx.update({"w": 1.0}, state)
    >>> v, state = tx.update({"w": 3.0}, state)
    >>> u["w"].item(), v["w"].item(), bool(tx.has_updated(state))
    (0.0, -2.0, True)

    Differs from Optax: weights and `flush`; no inner update is computed and thrown away at every mini-step.
    """

    opt: Transformation
    every_k_schedule: Annotated[Any, OrSchedule(Integer("[1, inf)"))]
    use_grad_mean: Static[bool] = True
    should_skip_update_fn: Static[ShouldSkipUpdateFunction | None] = None
    accumulator_dtype: Static[DType] = "float32"

    def init(self, params):
        acc = zeros_like(params, self.accumulator_dtype)
        skip_state = ()
        if self.should_skip_update_fn is not None:
            _, skip_state = self.should_skip_update_fn(cast_tree_like(acc, params), zero_count(), params)
        return MultiStepsState(zero_count(), zero_count(), self.opt.init(params), acc, skip_state, jnp.zeros([]))

    def update(self, updates, state, params=None, *, weight: Any = 1, **extra):
        weight = Range("[0, inf)").check("weight", weight)
        skip, skip_state = jnp.array(False), ()
        if self.should_skip_update_fn is not None:
            skip, skip_state = self.should_skip_update_fn(updates, state.gradient_step, params)
            if jnp.shape(skip) != () or jnp.result_type(skip) != jnp.bool_:
                raise ValueError(f"should_skip_update_fn must return a bool scalar first, got {skip!r}")
        total = state.weight_sum + jnp.where(skip, 0, weight)
        divisor = jnp.where(total == 0, 1, total) if self.use_grad_mean else 1
        k = self.every_k_schedule
        k = k(state.gradient_step) if isinstance(k, Schedule) else k
        close = ~skip & (state.mini_step + 1 >= k)

        def add(g, a):
            a = jnp.where(skip, a, a + (g - a if self.use_grad_mean else g) * weight / divisor)
            return a, a

        def pure(updates, state, params):
            grads, acc = map_leaves(add, updates, state.acc_grads, params=state.acc_grads)
            n = state.mini_step
            counted = state._replace(mini_step=jnp.where(skip, n, n + 1), acc_grads=acc, skip_state=skip_state)
            counted = counted._replace(weight_sum=cast_like(total, state.weight_sum))
            new, new_state = self._close_if(close, grads, counted, params, extra)
            return cast_tree_like(new, updates if params is None else params), new_state

        def operations():
            scalars = kernels.AccumulateScalars(~skip, self.use_grad_mean, weight, divisor, 1, close)
            links = kernels.operations_of(self.opt, state.inner_opt_state, params)
            return kernels.accumulated(scalars, state.acc_grads, links)

        return kernels.step_of(operations, pure, updates, state, params)

    def flush(self, state: MultiStepsState, params: Tree = None, **extra) -> tuple[Tree, MultiStepsState]:
        """Closes an incomplete window and returns the update from its gradients; zeros if it is empty.

        A leaf whose gradients were all None counts as one with a gradient of zeros.
        """
        new, new_state = self._close_if(state.mini_step > 0, state.acc_grads, state, params, extra)
        return cast_tree_like(new, state.acc_grads if params is None else params), new_state

    def _close_if(
        self, close: jax.Array, grads: Tree, state: MultiStepsState, params: Tree, extra: dict
    ) -> tuple[Tree, MultiStepsState]:
        """If `close`, updates with these gradients and empties the window."""
        new, inner_state = update_if(close, self.opt, grads, state.inner_opt_state, params, extra)
        return new, MultiStepsState(
            mini_step=jnp.where(close, 0, state.mini_step),
            gradient_step=jnp.where(close, increment(state.gradient_step), state.gradient_step),
            inner_opt_state=inner_state,
            acc_grads=map_leaves(lambda a: jnp.where(close, 0, a), state.acc_grads),
            skip_state=state.skip_state,
            weight_sum=jnp.where(close, 0, state.weight_sum),
        )

    def has_updated(self, state: MultiStepsState) -> jax.Array:
        """Returns whether the last mini-step closed a window: bool, shape ()."""
        return (state.mini_step == 0) & (state.gradient_step > 0)

    def gradient_transformation(self) -> GradientTransformation:
        """Returns itself, for scripts written for Optax's class."""
        return self


def skip_not_finite(updates: Tree, gradient_step: jax.Array, params: Tree = None) -> tuple[jax.Array, dict]:
    """Skips a mini-step with an inf or NaN in its gradients; for `should_skip_update_fn`.

    >>> bool(skip_not_finite({"w": jnp.array([1.0, jnp.inf])}, zero_count())[0])
    True
    """
    counts = [jnp.sum(~jnp.isfinite(g)) for g in jax.tree.leaves(updates)]
    skip = ~all_finite(updates)
    return skip, {"should_skip": skip, "num_not_finite": sum(counts, jnp.zeros([], jnp.int32))}


def skip_large_updates(
    updates: Tree, gradient_step: jax.Array, params: Tree = None, max_squared_norm: Any = jnp.inf
) -> tuple[jax.Array, dict]:
    """Skips if ‖g‖² ≥ max_squared_norm or NaN; for `should_skip_update_fn`, with `functools.partial`.

    >>> bool(skip_large_updates({"w": 3.0}, zero_count(), max_squared_norm=4.0)[0])
    True
    """
    squared = jnp.sum(sums_of_squares(updates))
    skip = ~(squared < max_squared_norm)
    return skip, {"should_skip": skip, "norm_squared": squared}


class ApplyEvery(NamedTuple):
    """`count`: gradients in the current window. `grad_acc`: their sum."""

    count: Counter
    grad_acc: Exact


@transformation
class apply_every(GradientTransformation):
    """Gives the sum of the last k gradients at every k-th step, and 0 at the others.

    Links before it in a chain run at every step. To get the same as one step on a k times larger batch, use
    `MultiSteps`.

    Args:
        k: the number of steps, a whole number ≥ 1.

    >>> tx = apply_every(2)
    >>> u, state = tx.update({"w": 1.0}, tx.init({"w": 0.0}))
    >>> u["w"].item(), tx.update({"w": 2.0}, state)[0]["w"].item()
    (0.0, 3.0)
    """

    k: PositiveInt = 1

    def init(self, params):
        return ApplyEvery(zero_count(), zeros_like(params))

    def update(self, updates, state, params=None, **extra):
        last = state.count >= self.k - 1

        def leaf(g, a):
            a = jnp.where(state.count == 0, 0, a) + g
            return jnp.where(last, a, 0), a

        updates, acc = map_leaves(leaf, updates, state.grad_acc, params=params)
        return updates, ApplyEvery(jnp.where(last, 0, increment(state.count)), acc)
