"""RMSprop: steps divided by a running root mean square."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import kernels
from ..core.checks import Static, checked
from ..core.leaves import full_like, map_leaves, zeros_like
from ..core.norms import abs_sq
from ..core.ranges import Decay, DType, Fraction, NonNegative
from ..core.schedule import Rate
from ..core.slots import Counter, Signed16, Unsigned, Unsigned16
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..transforms.combining.chain import chain, identity
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from ..transforms.scaling.moments import trace


class ScaleByRmsState(NamedTuple):
    """`nu`: running mean of |g|²."""

    nu: Unsigned


class ScaleByRmsWithCountState(NamedTuple):
    """`count`: steps done. `nu`: running mean of |g|²."""

    count: Counter
    nu: Unsigned


@transformation
class scale_by_rms(GradientTransformation):
    """RMSprop's direction: v ← decay·v + (1 − decay)·|g|²; u = g / √(v + eps).

    Args:
        decay: decay rate of the mean, in [0, 1).
        eps: added inside the root, ≥ 0; outside it with `eps_in_sqrt=False`: √v + eps.
        initial_scale: initial value of v, ≥ 0.
        eps_in_sqrt: whether eps is added inside the root.
        bias_correction: whether to divide v by 1 − decayᵗ.
        state_dtype: storage dtype of v. None means the params' dtype, or float32 for 16-bit params.

    Hinton 2012, Neural Networks for Machine Learning, lecture 6e.

    >>> tx = scale_by_rms(decay=0.75)
    >>> round(tx.update({"w": 3.0}, tx.init({"w": 0.0}))[0]["w"].item(), 3)
    2.0
    """

    preconditions = True
    decay: Decay = 0.9
    eps: NonNegative = 1e-8
    initial_scale: NonNegative = 0.0
    eps_in_sqrt: Static[bool] = True
    bias_correction: Static[bool] = False
    state_dtype: Static[DType | None] = None

    def init(self, params):
        nu = full_like(params, self.initial_scale, self.state_dtype, real=True)
        return ScaleByRmsWithCountState(zero_count(), nu) if self.bias_correction else ScaleByRmsState(nu)

    def update(self, updates, state, params=None, **extra):
        count, weight = _weight(self.bias_correction, self.decay, state)

        def leaf(g, v):
            v = self.decay * v + (1 - self.decay) * abs_sq(g)
            return g * _inverse_root(v / weight, self.eps, self.eps_in_sqrt), v

        updates, nu = map_leaves(leaf, updates, state.nu, params=params)
        return updates, state._replace(nu=nu, **count)

    def as_kernel(self, state, params):
        _, weight = _weight(self.bias_correction, self.decay, state)
        scalars = kernels.RMSScalars(self.decay, 1 - self.decay, weight, self.eps)
        return (kernels.KernelOp("rms" if self.eps_in_sqrt else "rms_outside", scalars, (state.nu,)),)


class ScaleByRStdDevState(NamedTuple):
    """`mu`, `nu`: running means of g and |g|²."""

    mu: Signed16
    nu: Unsigned16


class ScaleByRStdDevWithCountState(NamedTuple):
    """`count`: steps done. `mu`, `nu`: running means of g and |g|²."""

    count: Counter
    mu: Signed16
    nu: Unsigned16


@transformation
class scale_by_stddev(GradientTransformation):
    """Centered RMSprop's direction: u = g / √(v − |m|² + eps), m and v running means of g and |g|².

    Args: as in `scale_by_rms`.

    Graves 2013, arXiv:1308.0850, section 4.2.

    Differs from Optax, where a constant gradient gives NaN once rounding makes the variance negative.

    >>> tx = scale_by_stddev(decay=0.5, eps=0.0)
    >>> round(tx.update({"w": 3.0}, tx.init({"w": 0.0}))[0]["w"].item(), 3)
    2.0
    """

    preconditions = True
    decay: Decay = 0.9
    eps: NonNegative = 1e-8
    initial_scale: NonNegative = 0.0
    eps_in_sqrt: Static[bool] = True
    bias_correction: Static[bool] = False
    state_dtype: Static[DType | None] = None

    def init(self, params):
        mu = zeros_like(params, self.state_dtype)
        nu = full_like(params, self.initial_scale, self.state_dtype, real=True)
        if self.bias_correction:
            return ScaleByRStdDevWithCountState(zero_count(), mu, nu)
        return ScaleByRStdDevState(mu, nu)

    def update(self, updates, state, params=None, **extra):
        count, weight = _weight(self.bias_correction, self.decay, state)

        def leaf(g, m, v):
            m = self.decay * m + (1 - self.decay) * g
            v = self.decay * v + (1 - self.decay) * abs_sq(g)
            variance = jnp.maximum(v / weight - abs_sq(m / weight), 0.0)  # rounding may make it negative
            return g * _inverse_root(variance, self.eps, self.eps_in_sqrt), m, v

        updates, mu, nu = map_leaves(leaf, updates, state.mu, state.nu, params=params)
        return updates, state._replace(mu=mu, nu=nu, **count)


def _weight(bias_correction: bool, decay: Any, state: Any) -> tuple[dict, Any]:
    """Returns the new count, if one is kept, and the total weight of t steps in a mean that starts at zero."""
    if not bias_correction:
        return {}, 1.0
    t = increment(state.count)
    return {"count": t}, 1 - decay**t


def _inverse_root(v: jax.Array, eps: Any, eps_in_sqrt: bool) -> jax.Array:
    return jax.lax.rsqrt(v + eps) if eps_in_sqrt else 1 / (jnp.sqrt(v) + eps)


@checked
def rmsprop(
    learning_rate: Rate,
    decay: Decay = 0.9,
    eps: NonNegative = 1e-8,
    initial_scale: NonNegative = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Fraction | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """RMSprop: w ← w − t with t ← learning_rate · g / √(v + eps) + momentum·t.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.
        centered: whether to use v − m² instead of v. See `scale_by_rms`, `scale_by_stddev`.
        momentum: in [0, 1]; None for no trace. The trace includes the learning rate. See `trace`.

    Hinton 2012, lecture 6e; Graves 2013, arXiv:1308.0850.

    >>> rmsprop(0.1, momentum=0.9)
    chain(scale_by_rms(), scale_by_learning_rate(0.1), trace(0.9))
    """
    rule = scale_by_stddev if centered else scale_by_rms
    return chain(
        rule(decay, eps, initial_scale, eps_in_sqrt, bias_correction, state_dtype),
        scale_by_learning_rate(learning_rate),
        identity() if momentum is None else trace(momentum, nesterov, state_dtype),
    )
