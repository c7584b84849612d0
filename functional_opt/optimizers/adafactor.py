"""Adafactor: second moments stored as one row and one column per matrix."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import Static, checked
from ..core.leaves import Tree, map_leaves, zeros_like, zip_leaves
from ..core.norms import abs_sq
from ..core.paths import Mask
from ..core.ranges import Count, Decay, DType, NonNegative, PositiveBound, Real
from ..core.schedule import Rate, Schedule, rate_at
from ..core.slots import Counter, Unsigned
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..core.value import value
from ..transforms.clipping.clip import clip_by_block_rms
from ..transforms.combining.chain import chain, identity
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale, scale_by_learning_rate
from ..transforms.scaling.moments import ema
from ..transforms.scaling.trust_ratio import scale_by_param_block_rms


class FactoredState(NamedTuple):
    """`count`: steps done. `v_row`, `v_col`: means of |g|² over one axis. `v`: means of |g|² of unfactored leaves.

    A slot that a leaf does not use is zeros of shape (1,).
    """

    count: Counter
    v_row: Unsigned
    v_col: Unsigned
    v: Unsigned


def _power_decay(step: Any, decay_rate: Any) -> Any:
    """Returns 1 − t^−decay_rate, t counted from 1, so that the mean after the first step is that step's |g|²."""
    return 1 - (step + 1.0) ** -decay_rate


@transformation
class scale_by_factored_rms(GradientTransformation):
    """Adafactor's direction: u = g / √V with V = R·C / mean(R), R and C running means of |g|² over columns and rows.

    R ← d·R + (1 − d)·mean(|g|² + epsilon), C likewise, with d = 1 − t^−decay_rate. An unfactored leaf has
    V ← d·V + (1 − d)·(|g|² + epsilon).

    Args:
        factored: whether to factor the second moments of large leaves.
        decay_rate: the exponent of d.
        step_offset: number of initial steps that t does not count; it stays 1 meanwhile. For fine-tuning a trained
            model.
        min_dim_size_to_factor: a leaf is factored if both of the axes are at least this long.
        epsilon: added to |g|², ≥ 0.
        decay_rate_fn: a function of the step, counted from 0, and decay_rate that returns another d.
        factored_axes: "largest" factors a leaf's two longest axes, "last" always its last two, as Keras does.
        state_dtype: storage dtype of the means. None means the params' dtype, or float32 for 16-bit params.

    Shazeer & Stern 2018, arXiv:1804.04235, algorithm 4.

    >>> tx = scale_by_factored_rms(min_dim_size_to_factor=1)
    >>> g = jnp.outer(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, -1.0]))
    >>> u, state = tx.update(g, tx.init(g))
    >>> u.round(3).tolist()
    [[1.0, -1.0], [1.0, -1.0], [1.0, -1.0]]
    >>> state.v_row.shape, state.v_col.shape, state.v.shape
    ((2,), (3,), (1,))
    """

    preconditions = True
    factored: Static[bool] = True
    decay_rate: Real = 0.8
    step_offset: Real = 0
    min_dim_size_to_factor: Static[Count] = 128
    epsilon: NonNegative = 1e-30
    decay_rate_fn: Static[Callable[[Any, Any], Any]] = _power_decay
    factored_axes: Static[Literal["largest", "last"]] = "largest"
    state_dtype: Static[DType | None] = None

    def init(self, params):
        def slot(factor: bool, which: int = 0) -> Tree:
            def like(p):
                axes = self._axes(jnp.shape(p))
                if (axes is not None) is not factor:
                    return jax.ShapeDtypeStruct((1,), jnp.result_type(p))
                if axes is None:
                    return p
                mean = partial(jnp.mean, axis=axes[which])
                return jax.eval_shape(mean, p) if isinstance(p, jax.ShapeDtypeStruct) else mean(p)

            return zeros_like(jax.tree.map(like, params), self.state_dtype, real=True)

        return FactoredState(zero_count(), slot(True, 1), slot(True, 0), slot(False))

    def update(self, updates, state, params=None, **extra):
        if params is not None:
            zip_leaves((updates, params), ("updates", "params"))
        d = self.decay_rate_fn(jnp.maximum(state.count - self.step_offset, 0), self.decay_rate)

        def leaf(g, r, c, v):
            squares, axes = abs_sq(g) + self.epsilon, self._axes(g.shape)
            if axes is None:
                v = d * v + (1 - d) * squares
                return g * jax.lax.rsqrt(v), r, c, v
            i, j = axes
            r = d * r + (1 - d) * jnp.mean(squares, j)
            c = d * c + (1 - d) * jnp.mean(squares, i)
            mean = jnp.mean(r, i - (i > j), keepdims=True)
            of_row = jnp.where(mean < jnp.inf, jax.lax.rsqrt(r / mean), 0.0)  # no step where |g|² overflowed
            return g * jnp.expand_dims(of_row, j) * jnp.expand_dims(jax.lax.rsqrt(c), i), r, c, v

        slots = (state.v_row, state.v_col, state.v)
        updates, *slots = map_leaves(leaf, updates, *slots, params=params, same_shape=False)
        return updates, FactoredState(increment(state.count), *slots)

    def _axes(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Returns the axes that rows and columns run along, or None for an unfactored leaf."""
        if not self.factored or len(shape) < 2:
            return None
        order = range(len(shape)) if self.factored_axes == "last" else np.argsort(shape)
        i, j = (int(axis) for axis in order[-2:])
        return None if min(shape[i], shape[j]) < self.min_dim_size_to_factor else (i, j)


@value
class relative_step(Schedule):
    """Adafactor's relative step size ρ = min(limit, 1/√t), t counted from 1.

    Args:
        limit: upper bound of ρ: a number ≥ 0, a schedule, or a function of the count; the paper has 1e-2.

    Shazeer & Stern 2018, arXiv:1804.04235, algorithm 5.

    >>> [round(float(relative_step(0.6)(count)), 3) for count in (0, 3)]
    [0.6, 0.5]
    """

    limit: Rate = 1e-2

    def __call__(self, count):
        return jnp.minimum(rate_at(self.limit, count), jax.lax.rsqrt(jnp.asarray(count) + 1.0))


@checked
def adafactor(
    learning_rate: Rate | None = None,
    min_dim_size_to_factor: Count = 128,
    decay_rate: Real = 0.8,
    decay_offset: Real = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: PositiveBound | None = 1.0,
    momentum: Decay | None = None,
    dtype_momentum: DType | None = None,
    weight_decay_rate: Rate | None = None,
    eps: NonNegative = 1e-30,
    factored: bool = True,
    weight_decay_mask: Mask | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """Adafactor: w ← w − learning_rate · max(RMS(w), 1e-3) · u / max(1, RMS(u) / clipping_threshold), u = g / √V.

    See `scale_by_factored_rms` for V and its arguments (decay_offset is its step_offset).

    Args:
        learning_rate: a number ≥ 0, a schedule such as `relative_step()`, or a function of the count; None means 1.
        multiply_by_parameter_scale: whether to multiply by max(RMS(w), 1e-3).
        clipping_threshold: the largest root mean square of u in a leaf, > 0; None for no bound.
        momentum: decay rate of a running mean of the updates, in [0, 1); None for no mean.
        dtype_momentum: storage dtype of that mean; `state_dtype` if None.
        weight_decay_rate: decay added to the update without the learning rate as a factor; None for no decay.
        weight_decay_mask: which leaves decay, as in `add_decayed_weights`.

    Shazeer & Stern 2018, arXiv:1804.04235.

    >>> tx = adafactor(0.1)
    >>> u, _ = tx.update({"w": 2.0}, tx.init({"w": 5.0}), {"w": 5.0})
    >>> round(u["w"].item(), 3)
    -0.5
    """
    rule = scale_by_factored_rms(
        factored, decay_rate, decay_offset, min_dim_size_to_factor, eps, state_dtype=state_dtype
    )
    return chain(
        rule,
        identity() if clipping_threshold is None else clip_by_block_rms(clipping_threshold),
        identity() if learning_rate is None else scale_by_learning_rate(learning_rate, flip_sign=False),
        scale_by_param_block_rms() if multiply_by_parameter_scale else identity(),
        identity() if momentum is None else ema(momentum, False, dtype_momentum or state_dtype),
        identity() if weight_decay_rate is None else add_decayed_weights(weight_decay_rate, weight_decay_mask),
        scale(-1.0),
    )
