"""Sophia: a mean of the gradients divided by a mean of the Hessian's diagonal, clipped."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import cast_tree_like, is_nothing, map_leaves, widen_params, widen_tree, zeros_like
from ..core.paths import Mask
from ..core.ranges import Count, Decay, DType, NonNegative, PositiveBound, PositiveInt
from ..core.schedule import Rate
from ..core.slots import Counter, Signed, States
from ..core.transformation import (
    GradientTransformation,
    Transformation,
    increment,
    needs_params,
    transformation,
    zero_count,
)
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from ..transforms.stochastic.hutchinson import hutchinson_estimator_diag_hessian

HUTCHINSON = hutchinson_estimator_diag_hessian()


class SophiaState(NamedTuple):
    """`count`: steps done. `mu`: running mean of g. `nu`: that of ĥ. `hessian_fn_state`: the estimator's state."""

    count: Counter
    mu: Signed
    nu: Signed
    hessian_fn_state: States


@transformation
class scale_by_sophia(GradientTransformation):
    """Sophia's direction: m ← b1·m + (1 − b1)·g, m̂ = m / (1 − b1ᵗ); u = clip(m̂ / max(gamma·h, eps), ±clip_threshold).

    Every update_interval steps, starting with the first, h ← b2·h + (1 − b2)·ĥ after the step. ĥ is an estimate of
    the Hessian's diagonal.

    Args:
        b1, b2: decay rates of the two means, in [0, 1).
        eps: smallest divisor of m̂, ≥ 0.
        gamma: factor on h, ≥ 0. Choose it so that 0.1 to 0.5 of the elements of u are not clipped.
        clip_threshold: bound of |u|, > 0; None for no bound.
        update_interval: number of steps from one estimate to the next, ≥ 1; other steps skip the work.
        hessian_diagonal_fn: a gradient transformation whose updates are ĥ. Hutchinson's estimator, the default,
            needs `obj_fn` in `update`: the loss as a function of the params alone.
        mu_dtype: storage dtype of m; `state_dtype` if None.
        verbose, print_win_rate_every_n_steps: whether, and how often, to print the share of elements of u that were
            not clipped; 0 means never.
        state_dtype: storage dtype of m and h. None means the params' dtype, or float32 for 16-bit params.

    Raises ValueError without params, or without the arguments that `hessian_diagonal_fn` needs.

    Liu et al. 2023, arXiv:2305.14342, algorithm 3. As in Optax, m has a bias correction and u uses the h of the
    previous step.

    >>> tx, w = scale_by_sophia(), {"w": jnp.array([3.0, 0.0])}
    >>> loss = lambda params: jnp.sum(params["w"] ** 2)
    >>> u, state = tx.update(jax.grad(loss)(w), tx.init(w), w, obj_fn=loss)
    >>> u["w"].tolist(), round(state.nu["w"][0].item(), 3)
    ([1.0, 0.0], 0.02)
    """

    preconditions = True
    b1: Decay = 0.965
    b2: Decay = 0.99
    eps: NonNegative = 1e-8
    gamma: NonNegative = 0.01
    clip_threshold: PositiveBound | None = 1.0
    update_interval: PositiveInt = 10
    hessian_diagonal_fn: Transformation = HUTCHINSON
    mu_dtype: Static[DType | None] = None
    verbose: Static[bool] = False
    print_win_rate_every_n_steps: Static[Count] = 0
    state_dtype: Static[DType | None] = None

    def init(self, params):
        mu = zeros_like(params, self.mu_dtype or self.state_dtype)
        nu = zeros_like(params, self.state_dtype, real=True)
        return SophiaState(zero_count(), mu, nu, self.hessian_diagonal_fn.init(params))

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        t, bound = increment(state.count), self.clip_threshold

        def leaf(g, m, h):
            m = self.b1 * m + (1 - self.b1) * g
            u = m / (1 - self.b1**t) / jnp.maximum(self.gamma * h, self.eps)
            if bound is not None:
                u = jnp.where(jnp.abs(u) < bound, u, bound * jnp.sign(u))
            return u, m, h

        def estimate():
            grads = jax.tree.map(lambda g: None if is_nothing(g) else g, updates)
            wide = widen_tree(grads, "updates"), state.hessian_fn_state, widen_params(params)
            h, inner = self.hessian_diagonal_fn.update(*wide, **extra)
            nu = map_leaves(lambda e, h: (e, self.b2 * h + (1 - self.b2) * e.real), h, state.nu)[1]
            return nu, cast_tree_like(inner, state.hessian_fn_state)

        now = state.count % self.update_interval == 0
        nu, inner = jax.lax.cond(now, estimate, lambda: (state.nu, state.hessian_fn_state))
        u, mu, _ = map_leaves(leaf, updates, state.mu, state.nu, params=params)
        leaves = [x for x in jax.tree.leaves(u) if not is_nothing(x)]
        if self.verbose and leaves and bound is not None and self.print_win_rate_every_n_steps:
            inside = sum(jnp.sum(jnp.abs(x) < bound) for x in leaves)
            self._print(t, inside / sum(x.size for x in leaves))
        return u, SophiaState(t, mu, nu, inner)

    def _print(self, t: jax.Array, rate: Any) -> None:
        jax.lax.cond(
            t % self.print_win_rate_every_n_steps == 0,
            lambda: jax.debug.print("Sophia: {:.3f} of the updates not clipped at step {}", rate, t),
            lambda: None,
        )


@checked
def sophia(
    learning_rate: Rate,
    b1: Decay = 0.965,
    b2: Decay = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 1e-4,
    weight_decay_mask: Mask | None = None,
    gamma: NonNegative = 0.01,
    clip_threshold: PositiveBound | None = 1.0,
    update_interval: PositiveInt = 10,
    hessian_diagonal_fn: Transformation = HUTCHINSON,
    mu_dtype: DType | None = None,
    verbose: bool = False,
    print_win_rate_every_n_steps: Count = 0,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """Sophia: w ← w − learning_rate · (clip(m̂ / max(gamma·h, eps)) + weight_decay · w). See `scale_by_sophia`.

    `update` takes `obj_fn`, the loss as a function of the params alone:
    `tx.update(grads, state, params, obj_fn=lambda params: loss(params, batch))`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; about 0.8 times Lion's.
        weight_decay, weight_decay_mask: as in `add_decayed_weights`.

    Liu et al. 2023, arXiv:2305.14342.

    >>> sophia(1e-3)
    chain(scale_by_sophia(), add_decayed_weights(weight_decay=0.0001), scale_by_learning_rate(0.001))
    """
    rule = scale_by_sophia(
        b1,
        b2,
        eps,
        gamma,
        clip_threshold,
        update_interval,
        hessian_diagonal_fn,
        mu_dtype,
        verbose,
        print_win_rate_every_n_steps,
        state_dtype,
    )
    return chain(rule, add_decayed_weights(weight_decay, weight_decay_mask), scale_by_learning_rate(learning_rate))
