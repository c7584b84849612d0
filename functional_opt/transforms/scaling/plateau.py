"""reduce_on_plateau: smaller steps when the loss stops falling."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from ...core.leaves import cast_like, map_leaves
from ...core.ranges import Bound, Fraction, Integer, NonNegative, Range, Scalar
from ...core.slots import Counter, Number
from ...core.transformation import GradientTransformation, increment, needs_value, transformation, zero_count

Whole = Annotated[Scalar, Integer("[0, inf)")]


class ReduceLROnPlateauState(NamedTuple):
    """`scale`: the current factor. `best_value`: the lowest mean so far. `plateau_count`: means since then.

    `cooldown_count`: means still to ignore. `count`, `avg_value`: number of values in the current mean, and the mean.
    """

    scale: Number
    best_value: Number
    plateau_count: Counter
    cooldown_count: Counter
    count: Counter
    avg_value: Number


@transformation
class reduce_on_plateau(GradientTransformation):
    """Shrinks the updates by `factor` whenever the loss has not improved `patience` times in a row: u = scale · g.

    An improvement is a mean of `accumulation_size` losses below best − rtol·|best| − atol. Place it after an
    optimizer, `chain(adam(1e-3), reduce_on_plateau(patience=5))`, and pass the loss to `update` as `value=`.

    Args:
        factor: in (0, 1).
        patience: ≥ 0; 0 acts like 1.
        rtol, atol: relative and absolute decrease that does not count as an improvement yet, in [0, 1] and ≥ 0.
        cooldown: how many means to ignore after a reduction, ≥ 0.
        accumulation_size: how many losses make a mean, ≥ 1: 1 for a validation loss, more for minibatch losses.
        min_scale: the smallest scale, ≥ 0.

    Raises ValueError without `value`.

    >>> tx = reduce_on_plateau(factor=0.5, patience=2)
    >>> state = tx.init(None)
    >>> for loss in (1.0, 1.1, 1.2):
    ...     u, state = tx.update({"w": 1.0}, state, value=loss)
    >>> u["w"].item()
    0.5

    Differs from Optax: rtol is relative to |best|, so that negative losses have plateaus too; rtol and atol may both
    be 0.
    """

    factor: Annotated[Scalar, Range("(0, 1)")] = 0.1
    patience: Whole = 10
    rtol: Fraction = 1e-4
    atol: Bound = 0.0
    cooldown: Whole = 0
    accumulation_size: Annotated[Scalar, Integer("[1, inf)")] = 1
    min_scale: NonNegative = 0.0

    def init(self, params):
        plateau, cooldown, count = zero_count(), zero_count(), zero_count()
        return ReduceLROnPlateauState(
            jnp.ones([]),
            jnp.asarray(jnp.finfo(jnp.result_type(float)).max, float),
            plateau,
            cooldown,
            count,
            jnp.zeros([]),
        )

    def update(self, updates, state, params=None, *, value=None, **extra):
        value = needs_value(value, self)
        n, best = increment(state.count), state.best_value
        mean = state.avg_value + (jnp.asarray(value, float) - state.avg_value) / n
        full = n >= self.accumulation_size
        threshold = jnp.where(best < jnp.finfo(best.dtype).max, best - self.rtol * jnp.abs(best) - self.atol, best)
        better = mean < threshold
        cooling = state.cooldown_count > 0
        plateau = jnp.where(better | cooling, 0, increment(state.plateau_count))
        reduce = full & ~better & ~cooling & (plateau >= self.patience)
        scale = jnp.where(reduce, jnp.maximum(state.scale * self.factor, self.min_scale), state.scale)
        after = ReduceLROnPlateauState(
            scale=scale,
            best_value=jnp.where(better, mean, best),
            plateau_count=jnp.where(reduce, 0, plateau),
            cooldown_count=jnp.where(reduce, self.cooldown, jnp.maximum(state.cooldown_count - 1, 0)),
            count=jnp.zeros_like(n),
            avg_value=jnp.zeros_like(mean),
        )
        during = state._replace(count=n, avg_value=mean)
        state = jax.tree.map(lambda x, y, z: cast_like(jnp.where(full, x, y), z), after, during, state)
        return map_leaves(lambda g: scale * g, updates, params=params), state
