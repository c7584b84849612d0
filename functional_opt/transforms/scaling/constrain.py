"""keep_params_nonnegative: updates that do not leave a set."""

from typing import NamedTuple

import jax.numpy as jnp

from ...core.leaves import map_leaves
from ...core.transformation import GradientTransformation, needs_params, transformation


class NonNegativeParamsState(NamedTuple):
    """Nothing is kept."""


@transformation
class keep_params_nonnegative(GradientTransformation):
    """u = max(g, −w): params that are ≥ 0 stay so. For the end of a chain.

    A param below 0 is brought to 0; complex leaves, which have no order, pass as they are.

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
