"""trace, ema: running sums and means of the updates."""

from typing import NamedTuple

from ...core import kernels
from ...core.checks import Static
from ...core.leaves import map_leaves, zeros_like
from ...core.ranges import Decay, DType, Fraction
from ...core.slots import Counter, Signed
from ...core.transformation import GradientTransformation, increment, transformation, zero_count


class TraceState(NamedTuple):
    """`trace`: the running sum, a leaf for each param."""

    trace: Signed


@transformation
class trace(GradientTransformation):
    """Momentum, a decayed running sum: t ← g + decay·t; u = t, or with nesterov u = g + decay·t.

    Args:
        decay: in [0, 1].
        nesterov: whether to look one step ahead (Sutskever et al. 2013, ICML).
        accumulator_dtype: the dtype of the stored sum; if None, the params' dtype, or float32 for 16-bit params.

    >>> tx = trace(0.9)
    >>> u, state = tx.update({"w": 1.0}, tx.init({"w": 0.0}))
    >>> round(tx.update({"w": 1.0}, state)[0]["w"].item(), 3)
    1.9
    """

    decay: Fraction
    nesterov: Static[bool] = False
    accumulator_dtype: Static[DType | None] = None

    def init(self, params):
        return TraceState(zeros_like(params, self.accumulator_dtype))

    def update(self, updates, state, params=None, **extra):
        def leaf(g, t):
            t = g + self.decay * t
            return g + self.decay * t if self.nesterov else t, t

        updates, t = map_leaves(leaf, updates, state.trace, params=params)
        return updates, TraceState(t)

    def as_kernel(self, state, params):
        return (kernels.KernelOp("nesterov" if self.nesterov else "trace", (self.decay,), (state.trace,)),)


class EmaState(NamedTuple):
    """`count`: steps done. `ema`: the running mean, a leaf for each param."""

    count: Counter
    ema: Signed


@transformation
class ema(GradientTransformation):
    """An exponential running mean: m ← decay·m + (1 − decay)·g; u = m / (1 − decayᵗ) with debias, else m.

    Args:
        decay: in [0, 1).
        debias: whether to divide by 1 − decayᵗ, the total weight after t steps, as Adam does.
        accumulator_dtype: the dtype of the stored mean; if None, the params' dtype, or float32 for 16-bit params.

    >>> tx = ema(0.9)
    >>> u, state = tx.update({"w": 2.0}, tx.init({"w": 0.0}))
    >>> round(u["w"].item(), 3), round(state.ema["w"].item(), 3)
    (2.0, 0.2)
    """

    decay: Decay
    debias: Static[bool] = True
    accumulator_dtype: Static[DType | None] = None

    def init(self, params):
        return EmaState(zero_count(), zeros_like(params, self.accumulator_dtype))

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)

        def leaf(g, m):
            m = self.decay * m + (1 - self.decay) * g
            return m / (1 - self.decay**t) if self.debias else m, m

        updates, m = map_leaves(leaf, updates, state.ema, params=params)
        return updates, EmaState(t, m)
