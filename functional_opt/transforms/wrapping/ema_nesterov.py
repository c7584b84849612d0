"""ema_nesterov: gradients ahead of the params, along a running mean of their moves."""

from typing import NamedTuple

import jax.numpy as jnp

from ...core.checks import Static
from ...core.leaves import Tree, cast_like, map_leaves, widen_params, widen_tree, zeros_like
from ...core.ranges import Count, Decay, DType
from ...core.schedule import Rate, rate_at
from ...core.slots import Counter, Number, Signed16, States
from ...core.transformation import (
    GradientTransformation,
    Transformation,
    increment,
    needs_params,
    transformation,
    zero_count,
)
from .evaluate import where_kept


class EmaNesterovState(NamedTuple):
    """`count`: steps done. `lookahead`: β at the params being trained. `ema`: the mean move m. `inner_state`."""

    count: Counter
    lookahead: Number
    ema: Signed16
    inner_state: States

    def eval_params(self, params: Tree) -> Tree:
        """Returns the params x without the lookahead. See `functional_opt.eval_params`."""
        return where_kept(lambda y, m: y - self.lookahead * m, params, self.ema)


@transformation
class ema_nesterov(GradientTransformation):
    """Takes the steps of an optimizer from y = x + β·m: x⁺ = y + step(y); m⁺ = decay·m + (1 − decay)·(x⁺ − x).

    The params being trained are y, at which gradients are taken; the update is y⁺ − y, with y⁺ = x⁺ + β⁺·m⁺ and β⁺ of
    the next step. Evaluate and keep x, which `eval_params` returns. Once β is 0 they are the same.

    Args:
        inner: any optimizer.
        lookahead: β: a number ≥ 0, a schedule, or a function of the count. The paper's is in proportion to the
            learning rate, `proportional_schedule(0.5, rate, peak)` with 0.3 to 0.6.
        decay: of the mean, γ in the paper, in [0, 1).
        start_step, end_step: steps, counted from 0, at which β begins to apply, and at which it ends, None for never.
            The paper leaves out the warm-up and the end of training.
        state_dtype: storage dtype of m. None means the params' dtype, or float32 for 16-bit params.

    Raises ValueError without params.

    Yau et al. 2026, arXiv:2605.25395. Differs from the authors' code, whose `nesterov_step` moves the params before
    the gradient and leaves them at x after the step. In 16 bits x is y − β·m up to the rounding of y.

    >>> from functional_opt import apply_updates, eval_params, sgd
    >>> tx, w = ema_nesterov(sgd(1.0), lookahead=1.0, decay=0.5), jnp.array(0.0)
    >>> state = tx.init(w)
    >>> for _ in range(3):
    ...     u, state = tx.update(jnp.array(1.0), state, w)
    ...     w = apply_updates(w, u)
    ...     print(w.item(), eval_params(state, w).item())
    -1.5 -1.0
    -3.5 -2.5
    -6.0 -4.5
    """

    inner: Transformation
    lookahead: Rate = 0.5
    decay: Decay = 0.99
    start_step: Count = 0
    end_step: Count | None = None
    state_dtype: Static[DType | None] = None

    def init(self, params):
        beta = jnp.asarray(self._lookahead(zero_count()), float)
        return EmaNesterovState(zero_count(), beta, zeros_like(params, self.state_dtype), self.inner.init(params))

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        steps, inner_state = self.inner.update(
            widen_tree(updates, "updates"), state.inner_state, widen_params(params), **extra
        )
        count = increment(state.count)
        beta, ahead = state.lookahead, self._lookahead(count)

        def leaf(u, m):
            m = self.decay * m + (1 - self.decay) * (beta * m + u)
            return u + ahead * m, m

        new, ema = map_leaves(leaf, steps, state.ema, params=params)
        return new, EmaNesterovState(count, cast_like(ahead, beta), ema, inner_state)

    def _lookahead(self, count):
        applies = count >= self.start_step
        if self.end_step is not None:
            applies &= count < self.end_step
        return jnp.where(applies, rate_at(self.lookahead, count), 0.0)
