"""Optimistic gradients: steps that expect the gradient to change again as it did last."""

import warnings
from typing import NamedTuple

import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import map_leaves, zeros_like
from ..core.ranges import Decay, DType, NonNegative, Real
from ..core.schedule import Rate
from ..core.slots import Number, Signed
from ..core.transformation import GradientTransformation, transformation
from ..transforms.combining.chain import chain
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from .adam import scale_by_adam


class ScaleByOptimisticGradientState(NamedTuple):
    """`is_initial_step`: bool, shape (). `previous_gradient`: the last g, a leaf for each param."""

    is_initial_step: Number
    previous_gradient: Signed


@transformation
class scale_by_optimistic_gradient(GradientTransformation):
    """Optimistic gradient: u = (alpha + beta)·g − beta·g′, g′ the previous gradient, or g itself at the first step.

    Args:
        alpha: weight of the gradient, any number.
        beta: weight of its change, any number; 0 leaves alpha·g.
        state_dtype: storage dtype of g′. None means the params' dtype, or float32 for 16-bit params.

    Mokhtari, Ozdaglar & Pattathil 2019, arXiv:1901.08511, equation 8.

    >>> tx = scale_by_optimistic_gradient()
    >>> u, state = tx.update({"w": 1.0}, tx.init({"w": 0.0}))
    >>> u["w"].item(), tx.update({"w": 3.0}, state)[0]["w"].item()
    (1.0, 5.0)
    """

    alpha: Real = 1.0
    beta: Real = 1.0
    state_dtype: Static[DType | None] = None

    def init(self, params):
        return ScaleByOptimisticGradientState(jnp.array(True), zeros_like(params, self.state_dtype))

    def update(self, updates, state, params=None, **extra):
        def leaf(g, before):
            change = jnp.where(state.is_initial_step, 0.0, g - before)
            return self.alpha * g + self.beta * change, g

        updates, previous = map_leaves(leaf, updates, state.previous_gradient, params=params)
        return updates, ScaleByOptimisticGradientState(jnp.array(False), previous)


@checked
def optimistic_gradient_descent(
    learning_rate: Rate, alpha: Real = 1.0, beta: Real = 1.0, *, state_dtype: DType | None = None
) -> chain:
    """Optimistic gradient descent: w ← w − learning_rate · ((alpha + beta)·g − beta·g′), g′ the previous g.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.
        alpha, beta, state_dtype: as in `scale_by_optimistic_gradient`.

    Mokhtari, Ozdaglar & Pattathil 2019, arXiv:1901.08511.

    >>> optimistic_gradient_descent(0.1)
    chain(scale_by_optimistic_gradient(), scale_by_learning_rate(0.1))
    """
    return chain(scale_by_optimistic_gradient(alpha, beta, state_dtype), scale_by_learning_rate(learning_rate))


@checked
def optimistic_adam(
    learning_rate: NonNegative,
    optimism: Real | None = None,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DType | None = None,
    *,
    nesterov: bool = True,
    state_dtype: DType | None = None,
) -> chain:
    """Optimistic Adam: w ← w − learning_rate · a − optimism · (a − a′), a Adam's direction, a′ the previous a.

    Args:
        learning_rate: a number ≥ 0; for a schedule, use `optimistic_adam_v2`.
        optimism: any number; learning_rate if None.
        b1, b2, eps, eps_root, mu_dtype, nesterov, state_dtype: as in `scale_by_adam`.

    Issues a DeprecationWarning, as Optax does: use `optimistic_adam_v2` instead.

    Daskalakis et al. 2017, arXiv:1711.00141.

    >>> optimistic_adam(0.1)
    chain(scale_by_adam(nesterov=True), scale_by_optimistic_gradient(alpha=0.1, beta=0.1), \
scale_by_learning_rate(1.0))
    """
    message = "optimistic_adam takes no schedule: use `optimistic_adam_v2` instead"
    warnings.warn(message, DeprecationWarning, stacklevel=3)  # level 2 is `checked`
    rule = scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov, state_dtype=state_dtype)
    beta = learning_rate if optimism is None else optimism
    return chain(rule, scale_by_optimistic_gradient(learning_rate, beta, state_dtype), scale_by_learning_rate(1.0))


@checked
def optimistic_adam_v2(
    learning_rate: Rate,
    *,
    alpha: Real = 1.0,
    beta: Real = 1.0,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: DType | None = None,
    nesterov: bool = True,
    state_dtype: DType | None = None,
) -> chain:
    """Optimistic Adam: w ← w − learning_rate · ((alpha + beta)·a − beta·a′), a Adam's direction, a′ the previous a.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.
        alpha, beta: as in `scale_by_optimistic_gradient`.
        b1, b2, eps, eps_root, mu_dtype, nesterov, state_dtype: as in `scale_by_adam`.

    Daskalakis et al. 2017, arXiv:1711.00141.

    >>> optimistic_adam_v2(0.1)
    chain(scale_by_adam(nesterov=True), scale_by_optimistic_gradient(), scale_by_learning_rate(0.1))
    """
    rule = scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov, state_dtype=state_dtype)
    return chain(rule, scale_by_optimistic_gradient(alpha, beta, state_dtype), scale_by_learning_rate(learning_rate))
