"""adagc: bounds the norm of each leaf by a multiple of its own moving average."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...core.leaves import map_leaves
from ...core.norms import global_norm
from ...core.ranges import Bound, Count, Decay, NonNegative
from ...core.slots import Counter, Number
from ...core.transformation import GradientTransformation, increment, transformation, zero_count
from .clip import norm_without_nans, shrink


class AdaGCState(NamedTuple):
    """`count`: steps done. `norms`: γ of each leaf, the moving average of its clipped norm, 0 at first."""

    count: Counter
    norms: Number


@transformation
class adagc(GradientTransformation):
    """Bounds the norm of each leaf by its history: u = g · min(1, relative·γ / ‖g‖), γ ← decay·γ + (1 − decay)·‖u‖.

    During the first `warmup_steps` steps all leaves are clipped together, u = g · min(1, absolute / ‖all g‖), and
    γ ← min(γ, ‖u‖).

    Norms that are 0 or not finite do not enter γ, and a leaf without a γ is not clipped. A NaN stays in its leaf. An
    infinite norm gives no finite updates.

    Args:
        relative: the largest ratio of a leaf's norm to its average, λ_rel in the paper, ≥ 0.
        absolute: the largest global norm during the warm-up, λ_abs, ≥ 0.
        decay: of the averages, β, in [0, 1).
        warmup_steps: a whole number ≥ 0.

    Wang et al. 2025, arXiv:2502.11034. Differs from the paper, where a leaf whose gradient is 0 once during the
    warm-up, such as one multiplied by a factor that starts at zero, is held at 0 forever. The authors' code for
    Paddle has relative=1.04, decay=0.99, and takes the least ‖g‖ instead of the least ‖u‖ during the warm-up.

    >>> tx = adagc(relative=1.5, warmup_steps=1)
    >>> u, state = tx.update({"w": 0.5}, tx.init({"w": 0.0}))
    >>> tx.update({"w": 2.0}, state)[0]["w"].item()
    0.75
    """

    clips = True
    relative: NonNegative = 1.05
    absolute: Bound = 1.0
    decay: Decay = 0.98
    warmup_steps: Count = 100

    def init(self, params):
        return AdaGCState(zero_count(), jax.tree.map(lambda _: jnp.zeros([]), params))

    def update(self, updates, state, params=None, **extra):
        warm = state.count < self.warmup_steps
        together = shrink(norm_without_nans(updates), self.absolute)

        def leaf(g, average):
            norm = global_norm(g)
            new = average == 0
            limit = jnp.where(new, norm, self.relative * average)
            factor = jnp.where(warm, together, jnp.where(new, 1.0, shrink(norm, limit)))
            clipped = jnp.where(warm, norm * together, jnp.minimum(norm, limit))
            lowest = jnp.minimum(average, clipped)
            moved = self.decay * average + (1 - self.decay) * clipped
            moved = jnp.where(new, clipped, jnp.where(warm, lowest, moved))
            return g * factor, jnp.where(jnp.isfinite(norm) & (clipped > 0), moved, average)

        updates, norms = map_leaves(leaf, updates, state.norms, params=params, same_shape=False)
        return updates, AdaGCState(increment(state.count), norms)
