"""sam: gradients taken where the loss is worst nearby."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.apply import apply_updates
from ...core.checks import Static
from ...core.leaves import Tree, cast_tree_like, copy_of, map_leaves, widen_params, widen_tree
from ...core.ranges import PositiveInt
from ...core.slots import Counter, Params, States
from ...core.transformation import GradientTransformation, Transformation, needs_params, transformation, zero_count


class SAMState(NamedTuple):
    """`steps_since_sync`: ascents since the last descent. `opt_state`, `adv_state`: the two inner states.

    `cache`: the params being trained, while the ascent moves away from them; None in opaque mode.
    """

    steps_since_sync: Counter
    opt_state: States
    adv_state: States
    cache: Params


@transformation
class sam(GradientTransformation):
    """Climbs sync_period − 1 steps with adv_optimizer, then steps from w with optimizer and the last gradient.

    v ← w; (sync_period − 1) times v ← v − adv_optimizer(∇f(v)); w ← w + optimizer(∇f(v)). For the paper's SAM
    adv_optimizer is `chain(normalize(), sgd(rho))`.

    By default each `update` is one of these steps: the params are v, and return to w at the end of the period. In
    opaque mode each `update` is a complete period. It then takes `grad_fn`, a function that returns the gradients,
    given the params and the number of the ascent, 0 to sync_period − 2.

    Args:
        optimizer: the gradient transformation that descends.
        adv_optimizer: the gradient transformation that climbs, written as if it descended.
        sync_period: steps in a period, ≥ 1.
        reset_state: whether adv_optimizer restarts with each period.
        opaque_mode: whether to climb within `update`; needed if a step does more than move the params, for example
            if it updates batch statistics.
        batch_axis_name: the axis to average the gradients of `grad_fn` over; None for none.

    Raises ValueError without params; in opaque mode without grad_fn.

    Foret et al. 2020, arXiv:2010.01412.

    >>> from functional_opt import chain, normalize, sgd
    >>> tx = sam(sgd(0.1), chain(normalize(), sgd(0.5)))
    >>> w, state = jnp.array(1.0), tx.init(jnp.array(1.0))
    >>> for _ in range(2):
    ...     u, state = tx.update(2 * w, state, w)
    ...     w = apply_updates(w, u)
    ...     print(round(w.item(), 3))
    1.5
    0.7

    Differs from Optax: at each step only the transformation whose turn it is runs, and a period of 1 is optimizer
    alone (in Optax it returns to the params of the step before). Extra arguments reach both transformations.
    """

    optimizer: Transformation
    adv_optimizer: Transformation
    sync_period: Static[PositiveInt] = 2
    reset_state: Static[bool] = True
    opaque_mode: Static[bool] = False
    batch_axis_name: Static[Any] = None

    def init(self, params):
        cache = None if self.opaque_mode else copy_of(params)
        return SAMState(zero_count(), self.optimizer.init(params), self.adv_optimizer.init(params), cache)

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        step = self._period if self.opaque_mode else self._one
        updates, state = step(updates, state, params, extra)
        return cast_tree_like(updates, params), state

    def _one(self, updates: Tree, state: SAMState, params: Tree, extra: dict) -> tuple[Tree, SAMState]:
        first, last = state.steps_since_sync == 0, state.steps_since_sync == self.sync_period - 1
        v = widen_params(params)
        w = map_leaves(lambda c, p: jnp.where(first, p, c), state.cache, read=(v,))
        g = widen_tree(updates, "updates")

        def climb():
            u, adv_state = self.adv_optimizer.update(g, state.adv_state, v, **extra)
            return cast_tree_like(_negative(u), g), state.opt_state, cast_tree_like(adv_state, state.adv_state)

        def descend():
            u, opt_state = self.optimizer.update(g, state.opt_state, w, **extra)
            u = map_leaves(lambda u, c, p: c - p + u, u, read=(w, v))
            return cast_tree_like(u, g), cast_tree_like(opt_state, state.opt_state), self._restart(state.adv_state, w)

        u, opt_state, adv_state = jax.lax.cond(last, descend, climb)
        return u, SAMState(jnp.where(last, 0, state.steps_since_sync + 1), opt_state, adv_state, w)

    def _period(self, updates: Tree, state: SAMState, params: Tree, extra: dict) -> tuple[Tree, SAMState]:
        grad_fn: Callable | None = extra.get("grad_fn")
        if grad_fn is None:
            raise ValueError(
                "sam with opaque_mode needs the gradient: call update(updates, state, params, grad_fn=f) with "
                "f(params, i) the gradients at other params"
            )
        v, g, adv_state = params, updates, state.adv_state
        for i in range(self.sync_period - 1):
            u, adv_state = self.adv_optimizer.update(g, adv_state, v, **extra)
            v = apply_updates(v, _negative(u))
            g = grad_fn(v, i)
            if self.batch_axis_name is not None:
                g = jax.lax.pmean(g, self.batch_axis_name)
            g = map_leaves(lambda _, g: g, updates, read=(g,))  # None stays None
        u, opt_state = self.optimizer.update(g, state.opt_state, params, **extra)
        adv_state = self._restart(adv_state, params)
        return u, SAMState(state.steps_since_sync, opt_state, cast_tree_like(adv_state, state.adv_state), None)

    def _restart(self, adv_state: Any, params: Tree) -> Any:
        return cast_tree_like(self.adv_optimizer.init(params), adv_state) if self.reset_state else adv_state


def _negative(updates: Tree) -> Tree:
    return map_leaves(jnp.negative, updates)
