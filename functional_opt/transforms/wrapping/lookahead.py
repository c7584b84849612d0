"""lookahead: slow params that periodically follow those that an optimizer moves."""

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from ...core.apply import apply_updates
from ...core.checks import Static
from ...core.leaves import Tree, cast_tree_like, copy_of, map_leaves, widen_params, widen_tree
from ...core.model_trees import matching
from ...core.ranges import Fraction, PositiveInt
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


class LookaheadParams(NamedTuple):
    """`fast`: the params to take gradients at. `slow`: the params to evaluate and keep."""

    fast: Tree
    slow: Tree

    @classmethod
    def init_synced(cls, params: Tree) -> Self:
        """Returns two copies of `params`, each in buffers of its own, so that a jitted step may donate them.

        >>> LookaheadParams.init_synced({"w": jnp.ones([])})
        LookaheadParams(fast={'w': Array(1., dtype=float32)}, slow={'w': Array(1., dtype=float32)})
        """

        def copy(x):
            return x.copy() if isinstance(x, jax.Array | np.ndarray) else x

        return cls(jax.tree.map(copy, params), jax.tree.map(copy, params))

    def eval_params(self, params: Tree) -> Tree:
        """Returns the slow params. See `functional_opt.eval_params`."""
        return self.slow


class LookaheadState(NamedTuple):
    """`fast_state`: the inner state. `steps_since_sync`: int32. `slow`: slow params, or () if the user keeps them."""

    fast_state: States
    steps_since_sync: Counter
    slow: Params = ()

    def eval_params(self, params: Tree) -> Tree:
        """Returns the slow params if they are kept here. See `functional_opt.eval_params`."""
        if isinstance(self.slow, tuple) and self.slow == ():
            return jax.tree.map(lambda _: None, params)
        return where_kept(lambda w, s: s, params, self.slow)


@transformation
class lookahead(GradientTransformation):
    """Moves the params back towards slow ones at every k-th step: s ← s + slow_step_size·(w − s), w ← s.

    w are the params that the optimizer moves, s the slow params. The state keeps s, in float32 for 16-bit params, and
    `eval_params(state, params)` returns them. Alternatively the params may be a `LookaheadParams`, as in Optax: it
    then holds s, gradients are taken at `params.fast`, and the updates are a `LookaheadParams` too.

    Args:
        fast_optimizer: the optimizer.
        sync_period: k, a whole number ≥ 1.
        slow_step_size: in [0, 1].
        reset_state: whether the optimizer restarts, at the new params, after every k-th step.

    Raises ValueError without params.

    Zhang, Lucas, Hinton & Ba 2019, arXiv:1907.08610.

    >>> from functional_opt import apply_updates, sgd
    >>> tx, w = lookahead(sgd(1.0), sync_period=2, slow_step_size=0.5), jnp.array(0.0)
    >>> state = tx.init(w)
    >>> for _ in range(3):
    ...     u, state = tx.update(jnp.array(1.0), state, w)
    ...     w = apply_updates(w, u)
    >>> w.item(), state.slow.item()
    (-2.0, -1.0)

    Differs from Optax, where params must be a `LookaheadParams`.
    """

    fast_optimizer: Transformation
    sync_period: PositiveInt
    slow_step_size: Fraction
    reset_state: Static[bool] = False

    def init(self, params):
        if isinstance(params, LookaheadParams):
            return LookaheadState(self.fast_optimizer.init(params.fast), zero_count())
        return LookaheadState(self.fast_optimizer.init(params), zero_count(), copy_of(params))

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        has_slow = isinstance(params, LookaheadParams)
        w, s = (params.fast, params.slow) if has_slow else (params, state.slow)
        moves, fast_state = self.fast_optimizer.update(
            widen_tree(updates, "updates"), state.fast_state, widen_params(w), **extra
        )
        sync = state.steps_since_sync >= self.sync_period - 1

        def leaf(u, s, w):
            step = jnp.where(sync, self.slow_step_size * (w - s + u), 0)
            return jnp.where(sync, s - w + step, u), step if has_slow else s + step

        fast, slow = map_leaves(leaf, moves, s, read=(w,), params=w)
        if self.reset_state:
            start = matching(apply_updates(w, fast), s)
            fast_state = jax.lax.cond(
                sync, lambda: cast_tree_like(self.fast_optimizer.init(start), fast_state), lambda: fast_state
            )
        count = jnp.where(sync, 0, increment(state.steps_since_sync))
        updates = LookaheadParams(fast, slow) if has_slow else fast
        return updates, LookaheadState(fast_state, count, () if has_slow else slow)
