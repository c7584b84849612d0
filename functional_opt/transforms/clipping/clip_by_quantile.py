"""clip_by_quantile: the gradient's norm, bounded by a quantile of the norms before."""

from typing import NamedTuple

from ...core.leaves import map_leaves
from ...core.ranges import Fraction, PositiveInt
from ...core.slots import States
from ...core.transformation import GradientTransformation, transformation
from ...core.value import Static
from .clip import norm_without_nans, shrink
from .rolling import quantile, record, rolling


class ClipByQuantileState(NamedTuple):
    """`norms`: the last ones, before they were clipped."""

    norms: States


@transformation
class clip_by_quantile(GradientTransformation):
    """Bounds the global norm by a quantile Q of the last ones, its own among them: u = g · min(1, Q / ‖g‖).

    With quantile=0.1 nine steps in ten are as long as the shortest tenth of the last ones; with 0.95 only spikes are
    clipped. A leaf with a NaN is left out of the norm, as in `clip_by_global_norm`; a norm of infinity makes every
    finite leaf zero and is not recorded.

    Args:
        quantile: in [0, 1], linear between two norms.
        window: how many norms are kept, a whole number ≥ 1; they are sorted at each step (1000: 0.15 ms on a CPU).

    Seetharaman, Wichern, Pardo & Le Roux 2020 (AutoClip), arXiv:2007.14469, where all norms are kept.

    >>> tx = clip_by_quantile(0.5, window=3)
    >>> state = tx.init({"w": 0.0})
    >>> for g in (1.0, 2.0, 6.0):
    ...     u, state = tx.update({"w": g}, state)
    >>> u["w"].item()
    2.0
    """

    clips = True
    quantile: Fraction = 0.1
    window: Static[PositiveInt] = 100

    def init(self, params):
        return ClipByQuantileState(rolling(self.window))

    def update(self, updates, state, params=None, **extra):
        norm = norm_without_nans(updates)
        norms = record(state.norms, norm)
        factor = shrink(norm, quantile(norms, self.quantile))
        return map_leaves(lambda g: g * factor, updates, params=params), ClipByQuantileState(norms)
