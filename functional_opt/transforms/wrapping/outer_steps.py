"""outer_steps: every k-th step of an optimizer ends with a step of another one on what the k steps did."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.leaves import Tree, as_updates, cast_tree_like, copy_of, map_leaves, widen_params, widen_tree
from ...core.ranges import PositiveInt
from ...core.slots import Counter, Params, States
from ...core.transformation import (
    GradientTransformation,
    Transformation,
    increment,
    needs_params,
    transformation,
    zero_count,
)
from .evaluate import where_kept


class OuterStepsState(NamedTuple):
    """`fast_state`, `outer_state`: of both optimizers. `steps_since_sync`: int32.

    `slow`: the params after the last outer step, in float32 for 16-bit params.
    """

    fast_state: States
    outer_state: States
    steps_since_sync: Counter
    slow: Params

    def eval_params(self, params: Tree) -> Tree:
        """Returns the slow params. See `functional_opt.eval_params`."""
        return where_kept(lambda w, s: s, params, self.slow)


@transformation
class outer_steps(GradientTransformation):
    """Takes an outer step after every k steps: g = s − w, s ← s + outer(g), w ← s.

    w are the params that the fast optimizer moves, s the slow ones, at which the last outer step ended. The way that
    k steps went, backwards, is the gradient of the outer optimizer, which may have momentum or adapt. Its count and
    its schedules go on once in k steps. `lookahead` is the case outer = sgd(slow_step_size).

    Args:
        fast_optimizer: the optimizer of every step.
        outer_optimizer: that of every k-th step; with `sgd(0.7, 0.9, nesterov=True)` this is DiLoCo on one worker.
        sync_period: k, a whole number ≥ 1.

    Raises ValueError without params.

    Douillard et al. 2023, arXiv:2311.08105; Kallusky et al. 2025, arXiv:2510.15830.

    >>> from functional_opt import apply_updates, sgd
    >>> tx, w = outer_steps(sgd(1.0), sgd(0.5, 0.5, nesterov=True), sync_period=2), jnp.array(0.0)
    >>> state = tx.init(w)
    >>> for _ in range(4):
    ...     u, state = tx.update(jnp.array(1.0), state, w)
    ...     w = apply_updates(w, u)
    ...     print(w.item())
    -1.0
    -1.5
    -2.5
    -3.25
    """

    fast_optimizer: Transformation
    outer_optimizer: Transformation
    sync_period: PositiveInt

    def init(self, params):
        slow = copy_of(params)
        return OuterStepsState(self.fast_optimizer.init(params), self.outer_optimizer.init(slow), zero_count(), slow)

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        w = widen_params(params)
        moves, fast_state = self.fast_optimizer.update(widen_tree(updates, "updates"), state.fast_state, w, **extra)

        def outer_step(outer_state: Any, slow: Tree) -> tuple:
            way = map_leaves(lambda u, s, w: s - (w + u), moves, read=(slow, w))
            step, after = self.outer_optimizer.update(way, outer_state, slow)
            move, new = map_leaves(lambda d, s, w: (s + d - w, s + d), step, slow, read=(w,))
            return move, cast_tree_like(after, outer_state), new

        def no_step(outer_state: Any, slow: Tree) -> tuple:
            return map_leaves(lambda u: u, moves), outer_state, slow

        sync = state.steps_since_sync >= self.sync_period - 1
        move, outer_state, slow = jax.lax.cond(sync, outer_step, no_step, state.outer_state, state.slow)
        new = as_updates(move, updates, params)
        count = jnp.where(sync, 0, increment(state.steps_since_sync))
        return new, OuterStepsState(fast_state, outer_state, count, slow)
