"""clip_by_quantile: bounds the gradient's norm by a quantile of recent norms."""

from typing import NamedTuple

from ...core.checks import Static
from ...core.leaves import map_leaves
from ...core.ranges import Fraction, PositiveInt
from ...core.slots import States
from ...core.transformation import GradientTransformation, transformation
from .clip import norm_without_nans, shrink
from .rolling import quantile, record, rolling


class ClipByQuantileState(NamedTuple):
    """`norms`: the last norms, before clipping."""

    norms: States


@transformation
class clip_by_quantile(GradientTransformation):
    """Bounds the global norm by a quantile Q of the last norms, its own included: u = g · min(1, Q / ‖g‖).

    With quantile=0.1 about nine of ten steps are clipped, to the 10th percentile of the last norms; with 0.95 only
    spikes are clipped. A leaf with a NaN is left out of the norm, as in `clip_by_global_norm`. An infinite norm makes
    every finite leaf zero and is not recorded.

    Args:
        quantile: in [0, 1]; interpolated linearly between two norms.
        window: how many norms to keep, a whole number ≥ 1; they are sorted at each step (1000: 0.15 ms on a CPU).

    Seetharaman, Wichern, Pardo & Le Roux 2020 (AutoClip), arXiv:2007.14469, which keeps all norms.

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
