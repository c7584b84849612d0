"""StableAdamW: AdamW whose step shrinks where a gradient outgrows its second moment."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import Tree, map_leaves, zeros_like
from ..core.model_trees import visible
from ..core.norms import abs_sq, safe_sqrt
from ..core.paths import Mask, merge, resolve_mask
from ..core.ranges import Decay, DType, Positive
from ..core.schedule import Rate, rate_at
from ..core.slots import Counter, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, needs_params, transformation, zero_count
from ..transforms.combining.chain import chain
from ..transforms.scaling.learning_rate import scale_by_learning_rate


class ScaleByStableAdamWState(NamedTuple):
    """`count`: steps done. `mu`, `nu`: weighted means of g and |g|², without bias."""

    count: Counter
    mu: Signed
    nu: Unsigned


@transformation
class scale_by_stable_adamw(GradientTransformation):
    """StableAdamW's direction: u = (m / (√v + eps) + weight_decay · w) / max(1, RMS).

    RMS, one number per leaf, is √(mean of |g|² / max(v, eps²)). It is about 1, and larger where v lags behind. The
    weight of the new term is (1 − b) / (1 − bᵗ): m ← m + (g − m)·(1 − b1) / (1 − b1ᵗ), and v likewise with |g|² and
    b2.

    Args:
        b1, b2: decay rates of the two means, in [0, 1).
        eps: added outside the root, > 0.
        weight_decay: a number ≥ 0, a schedule, or a function of the count; None for no decay, which
            needs no params.
        mask: which leaves decay, as in `add_decayed_weights`; all if None.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params.

    Raises ValueError if there is weight_decay but no params, and if the mask does not fit, naming the leaf.

    Wortsman et al. 2023, arXiv:2304.13013, algorithm 2. The decay shrinks with the step, so it is part of this
    transformation.

    >>> tx, w = scale_by_stable_adamw(), jnp.zeros(2)
    >>> _, state = tx.update(jnp.array([0.1, 0.1]), tx.init(w))
    >>> tx.update(jnp.array([9.0, 9.0]), state)[0].round(2).tolist()  # a spike; without the clip 0.75
    [0.5299999713897705, 0.5299999713897705]
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.99
    eps: Positive = 1e-8
    weight_decay: Rate | None = None
    mask: Static[Mask | None] = None
    state_dtype: Static[DType | None] = None

    def init(self, params):
        if self.mask is not None:
            resolve_mask(self.mask, params)  # refuse one that does not fit before training starts
        mu = zeros_like(params, self.state_dtype)
        return ScaleByStableAdamWState(zero_count(), mu, zeros_like(params, self.state_dtype, real=True))

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        new1, new2 = ((1 - b) / (1 - b**t) for b in (self.b1, self.b2))
        rate = 0.0 if self.weight_decay is None else rate_at(self.weight_decay, state.count)

        def leaf(g, m, v, w):
            m = (1 - new1) * m + new1 * g
            v = (1 - new2) * v + new2 * abs_sq(g)
            rms = safe_sqrt(jnp.mean(abs_sq(g / jnp.maximum(jnp.sqrt(v), self.eps))))
            return (m / (jnp.sqrt(v) + self.eps) + rate * w) / jnp.maximum(1.0, rms), m, v

        read = (self._decaying(updates, params),)
        updates, mu, nu = map_leaves(leaf, updates, state.mu, state.nu, read=read, params=params)
        return updates, ScaleByStableAdamWState(t, mu, nu)

    def _decaying(self, updates: Tree, params: Tree) -> Tree:
        """Returns the params where they decay, and zeros elsewhere."""
        if self.weight_decay is None:
            return jax.tree.map(jnp.zeros_like, updates)
        needs_params(params, self)
        if self.mask is None:
            return params
        params = visible(params, updates)
        return merge(resolve_mask(self.mask, params), params, jax.tree.map(jnp.zeros_like, params))


@checked
def stable_adamw(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    eps: Positive = 1e-8,
    weight_decay: Rate = 1e-2,
    mask: Mask | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """StableAdamW: w ← w − learning_rate / max(1, RMS) · (m / (√v + eps) + weight_decay · w).

    See `scale_by_stable_adamw` for the terms and arguments. It replaces gradient clipping.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.

    Wortsman et al. 2023, arXiv:2304.13013.

    >>> stable_adamw(1e-3)
    chain(scale_by_stable_adamw(weight_decay=0.01), scale_by_learning_rate(0.001))
    """
    rule = scale_by_stable_adamw(b1, b2, eps, weight_decay, mask, state_dtype)
    return chain(rule, scale_by_learning_rate(learning_rate))
