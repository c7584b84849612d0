"""kahan: 16-bit params that carry their rounding errors along."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.leaves import cast_like, is_nothing, widen, widen_params, widen_tree
from ...core.paths import MaskedNode
from ...core.slots import Params, States
from ...core.transformation import GradientTransformation, Transformation, needs_params, transformation


class KahanState(NamedTuple):
    """`inner_state`: the inner state. `compensation`: the rounding errors of 16-bit params, in their dtype;
    `MaskedNode()` for other leaves."""

    inner_state: States
    compensation: Params


@transformation
class kahan(GradientTransformation):
    """Updates 16-bit params by Kahan summation: y = u + c, w' = round(w + y), c' = round(y − (w' − w)).

    w + c follows the float32 sum to about 16 bits, for 2 bytes per element. The inner optimizer works in float32,
    at w. Leaves of other dtypes are updated as usual.

    Args:
        inner: the optimizer.

    It must be the outermost transformation, because params are float32 inside a `chain`. Its updates of 16-bit leaves
    are float32, because the difference of two 16-bit numbers may need more bits; `apply_updates` gives exactly w'.

    Raises ValueError without params.

    Kahan 1965; Zamirai, Zhang, Aberger & De Sa 2020, arXiv:2010.06192.

    >>> from functional_opt import apply_updates, sgd
    >>> tx, w = kahan(sgd(1e-3)), jnp.ones([], "bfloat16")
    >>> state = tx.init(w)
    >>> for _ in range(100):
    ...     u, state = tx.update(jnp.ones([]), state, w)
    ...     w = apply_updates(w, u)
    >>> w.item()  # to the nearest it would still be 1
    0.8984375
    """

    inner: Transformation

    def init(self, params):
        zeros = jax.tree.map(lambda w: jnp.zeros_like(w) if is_short(w) else MaskedNode(), params)
        return KahanState(self.inner.init(params), zeros)

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        moves, inner_state = self.inner.update(
            widen_tree(updates, "updates"), state.inner_state, widen_params(params), **extra
        )

        def leaf(u, w, c):
            if is_nothing(u) or not is_short(w):
                return u, c
            y = u + widen(c)
            step = step_to(cast_like(widen(w) + y, w), w)
            return step, cast_like(y - (widen(stepped(w, step)) - widen(w)), c)

        leaves, treedef = jax.tree.flatten(moves, is_leaf=is_nothing)
        rows = zip(leaves, treedef.flatten_up_to(params), treedef.flatten_up_to(state.compensation), strict=True)
        pairs = [leaf(*row) for row in rows]
        moves, compensation = (treedef.unflatten([pair[i] for pair in pairs]) for i in range(2))
        return moves, KahanState(inner_state, compensation)


def is_short(w: Any) -> bool:
    """Returns whether a leaf is a 16-bit float."""
    dtype = jnp.result_type(w)
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize == 2


def step_to(new: jax.Array, w: jax.Array) -> jax.Array:
    """Returns the float32 update that takes w to another number of its dtype.

    Float32 holds the difference of two such numbers exactly unless one is 2¹⁶ times the other. If the new number is
    the larger one, rounding the sum removes the error.
    """
    return widen(new) - widen(w)


def stepped(w: jax.Array, step: jax.Array) -> jax.Array:
    """Returns what `apply_updates` makes of w."""
    return cast_like(widen(w) + step, w)
