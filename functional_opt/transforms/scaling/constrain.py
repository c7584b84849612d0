"""keep_params_nonnegative: updates that keep params ≥ 0."""

from typing import NamedTuple

import jax.numpy as jnp

from ...core.leaves import map_leaves
from ...core.transformation import GradientTransformation, needs_params, transformation


class NonNegativeParamsState(NamedTuple):
    """An empty state."""


@transformation
class keep_params_nonnegative(GradientTransformation):
    """Keeps params ≥ 0: u = max(g, −w). Place it at the end of a chain.

    A param below 0 is brought to 0 or above. Complex leaves, which have no order, pass through unchanged.

    Raises ValueError without params.

    >>> tx = keep_params_nonnegative()
    >>> tx.update(jnp.array([-3.0, -4.0]), tx.init(None), jnp.array([1.0, 10.0]))[0].tolist()
    [-1.0, -4.0]
    """

    def init(self, params):
        return NonNegativeParamsState()

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)

        def leaf(g, w):
            return g if jnp.iscomplexobj(g) or jnp.iscomplexobj(w) else jnp.maximum(g, -w)

        return map_leaves(leaf, updates, read=(params,), params=params), state
