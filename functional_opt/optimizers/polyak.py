"""Polyak's step size, computed from the loss and the norm of the gradient."""

from typing import Literal

import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import map_leaves, widen
from ..core.norms import abs_sq
from ..core.ranges import Bound, NonNegative, Real
from ..core.schedule import Rate
from ..core.transformation import EmptyState, GradientTransformation, needs_value, transformation
from ..transforms.combining.chain import chain
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from .distance import largest_size, ratio, total_over_leaves

Variant = Literal["sps", "sps+"]


@transformation
class scale_by_polyak(GradientTransformation):
    """Polyak's step: u = min((value − f_min) / (‖g‖² + eps), max_learning_rate) · g, 0 where ‖g‖ is 0.

    The norm is over all leaves. Every step needs the loss: `update(grads, state, params, value=loss)`.

    Args:
        f_min: the least value that the loss can have, or a guess of it.
        max_learning_rate: the largest step size, ≥ 0.
        eps: added to ‖g‖², ≥ 0.
        variant: "sps" is as above and goes uphill where value < f_min; "sps+" uses max(value − f_min, 0).

    Raises ValueError without value.

    Loizou et al. 2021, arXiv:2002.10542; Garrigos, Gower & Schaipp 2023, arXiv:2307.14528, for "sps+".

    >>> tx, g = scale_by_polyak(max_learning_rate=10.0), {"w": jnp.array([3.0, 4.0])}
    >>> tx.update(g, tx.init(g), value=50.0)[0]["w"].tolist()
    [6.0, 8.0]
    """

    f_min: Real = 0.0
    max_learning_rate: Bound = 1.0
    eps: NonNegative = 0.0
    variant: Static[Variant] = "sps"

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, *, value=None, **extra):
        gap = widen(jnp.asarray(needs_value(value, self))) - self.f_min
        if self.variant == "sps+":
            gap = jnp.maximum(gap, 0.0)
        size = largest_size(updates, updates)
        square = total_over_leaves(lambda g: abs_sq(g / size), updates)  # ‖g‖² / size²
        inverse = 1 / size  # XLA turns a / s / s into a / (s · s), which over- or underflows
        step = ratio(gap * inverse * inverse, square + self.eps * inverse * inverse)
        step = jnp.minimum(step, self.max_learning_rate)
        return map_leaves(lambda g: step * g, updates, params=params), state


@checked
def polyak_sgd(
    max_learning_rate: Bound = 1.0,
    scaling: Rate = 1.0,
    f_min: Real = 0.0,
    eps: NonNegative = 0.0,
    variant: Variant = "sps",
) -> chain:
    """Gradient descent with Polyak's step: w ← w − scaling · u. See `scale_by_polyak`.

    Args:
        scaling: a number ≥ 0, a schedule, or a function of the count.
        max_learning_rate, f_min, eps, variant: as in `scale_by_polyak`.

    Every step needs the loss: `update(grads, state, params, value=loss)`.

    Loizou et al. 2021, arXiv:2002.10542.

    >>> tx, w = polyak_sgd(max_learning_rate=10.0), jnp.array([3.0, 4.0])
    >>> u, _ = tx.update(2 * w, tx.init(w), w, value=jnp.sum(w**2))
    >>> (w + u).tolist()
    [1.5, 2.0]

    Differs from Optax, where scaling multiplies the gradient before the step size is computed: 0.5 doubles the step.
    """
    rule = scale_by_polyak(f_min, max_learning_rate, eps, variant)
    return chain(rule, scale_by_learning_rate(scaling))
