"""Lion: the sign of an interpolated momentum."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from ..core import kernels
from ..core.checks import Static, checked
from ..core.leaves import map_leaves, zeros_like
from ..core.paths import Mask
from ..core.ranges import Decay, DType, Positive
from ..core.schedule import Rate
from ..core.slots import Counter, Signed
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate


class ScaleByLionState(NamedTuple):
    """`count`: steps done. `mu`: running mean of g."""

    count: Counter
    mu: Signed


@transformation
class scale_by_lion(GradientTransformation):
    """Lion's direction: u = sign(b1·m + (1 − b1)·g); then m ← b2·m + (1 − b2)·g.

    Args:
        b1: weight of the mean in the direction, in [0, 1).
        b2: decay rate of the mean, in [0, 1).
        mu_dtype, state_dtype: storage dtype of m. Both mean the same, as m is the only slot: Optax has the first, all
            our optimizers the second; the first wins. None means the params' dtype, or float32 for 16-bit params.
        mode: with c = b1·m + (1 − b1)·g, "hard" takes its sign, "smooth" tanh(smooth_beta · c), and "refined" clips c
            to [−1, 1].
        smooth_beta: steepness of the tanh, > 0.

    Chen et al. 2023, arXiv:2302.06675.

    >>> tx = scale_by_lion()
    >>> tx.update({"w": jnp.array([5.0, -0.1])}, tx.init({"w": jnp.zeros(2)}))[0]["w"].tolist()
    [1.0, -1.0]
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.99
    mu_dtype: Static[DType | None] = None
    mode: Static[Literal["hard", "smooth", "refined"]] = "hard"
    smooth_beta: Positive = 1.0
    state_dtype: Static[DType | None] = None

    def init(self, params):
        return ScaleByLionState(zero_count(), zeros_like(params, self.mu_dtype or self.state_dtype))

    def update(self, updates, state, params=None, **extra):
        shape = {"hard": jnp.sign, "smooth": lambda c: jnp.tanh(self.smooth_beta * c), "refined": _clip_to_one}

        b1, b2 = self.b1, self.b2
        between = jnp.asarray(b2 >= b1)
        r = b1 / jnp.where(b2 == 0, 1.0, b2)

        def leaf(g, m):
            new = b2 * m + (1 - b2) * g
            # b1·m + (1 − b1)·g, computed from the new mean if c lies between it and g. If it read the old mean, XLA
            # on a CPU would copy that before overwriting it, which takes twice as long as the rest of the step.
            c = jnp.where(between, r * new + (1 - r) * g, b1 * m + (1 - b1) * g)
            return shape[self.mode](c), new

        updates, mu = map_leaves(leaf, updates, state.mu, params=params)
        return updates, ScaleByLionState(increment(state.count), mu)

    def as_kernel(self, state, params):
        scalars = kernels.LionScalars(self.b1, 1 - self.b1, self.b2, 1 - self.b2)
        return (kernels.KernelOp("lion", scalars, (state.mu,)),) if self.mode == "hard" else None


def _clip_to_one(c: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(c) < 1, c, jnp.sign(c))


@checked
def lion(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    mu_dtype: DType | None = None,
    weight_decay: Rate = 1e-3,
    mask: Mask | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """Lion: w ← w − learning_rate · (sign(b1·m + (1 − b1)·g) + weight_decay · w). See `scale_by_lion`.

    Args:
        learning_rate: a number ≥ 0 (3 to 10 times smaller than Adam's), a schedule, or a function of the count.
        weight_decay, mask: as in `add_decayed_weights`.

    Chen et al. 2023, arXiv:2302.06675.

    >>> lion(1e-4)
    chain(scale_by_lion(), add_decayed_weights(weight_decay=0.001), scale_by_learning_rate(0.0001))
    """
    rule = scale_by_lion(b1, b2, mu_dtype, state_dtype=state_dtype)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
