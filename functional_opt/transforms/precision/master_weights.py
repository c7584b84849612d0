"""master_weights: 16-bit params with their float32 weights, or the missing bits of these, in the state."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...core.checks import Static
from ...core.leaves import cast_like, check_leaves, copy_of, is_nothing, widen_tree
from ...core.model_trees import visible
from ...core.paths import MaskedNode
from ...core.slots import Params, States
from ...core.transformation import GradientTransformation, Transformation, needs_params, transformation
from .kahan import is_short, step_to, stepped


class MasterWeightsState(NamedTuple):
    """`inner_state`: the inner state. `master`: float32 weights, or their lower bits; `MaskedNode()` for leaves that
    are not 16-bit."""

    inner_state: States
    master: Params


@transformation
class master_weights(GradientTransformation):
    """Updates float32 weights, and rounds them to get the 16-bit params: w ← w + u(w), params = round(w).

    Gradients are taken at the params, and the inner optimizer sees w.

    Args:
        inner: the optimizer.
        dtype: how w is stored. "float32": in full. "int16": only the lower half of its bits, which together with a
            bfloat16 param give exactly w, in 2 bytes per element instead of 4. "int8": only the upper 8 of these
            bits, in 1 byte; w is then rounded to 16 significant bits at every step. float16 params always get a
            float32 w.

    With "int16" a w halfway between two params is rounded away from 0, otherwise to the even one. Leaves of other
    dtypes are updated as usual. It must be the outermost transformation, because params are float32 inside a `chain`.
    Its updates of 16-bit leaves are float32, because the difference of two 16-bit numbers may need more bits;
    `apply_updates` gives exactly the rounded w, unless one step makes a weight 2¹⁶ times smaller.

    Raises ValueError without params.

    Micikevicius et al. 2017, arXiv:1710.03740; Kalamkar et al. 2020, arXiv:2005.04680, for the split in halves;
    Gonzalez Ortiz, Gupta, Renard & Blalock 2026, arXiv:2602.23349 (FlashOptim), for the 8-bit remainder. There 127,
    or 32767 in 16 bits, stands for half the distance to the next param; here the remainder is bits of w.

    >>> from functional_opt import apply_updates, sgd
    >>> tx, w = master_weights(sgd(1e-3), "int16"), jnp.ones([], "bfloat16")
    >>> state = tx.init(w)
    >>> for _ in range(100):
    ...     u, state = tx.update(jnp.ones([]), state, w)
    ...     w = apply_updates(w, u)
    >>> w.item(), state.master.dtype
    (0.8984375, dtype('int16'))
    """

    inner: Transformation
    dtype: Static[Literal["float32", "int16", "int8"]] = "float32"

    def init(self, params):
        def leaf(w):
            if not is_short(w):
                return MaskedNode()
            return jnp.zeros_like(w, dtype=self.dtype) if self._splits(w) else copy_of(w)

        return MasterWeightsState(self.inner.init(params), jax.tree.map(leaf, params))

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        params = visible(params, updates)
        check_leaves(updates, params)
        whole = jax.tree.map(lambda p, m: self._whole(p, m), params, state.master)
        moves, inner_state = self.inner.update(widen_tree(updates, "updates"), state.inner_state, whole, **extra)

        def leaf(u, p, w, m):
            if is_nothing(u) or not is_short(p):
                return u, m
            w = jnp.asarray(w + u, jnp.float32)
            if not self._splits(p):
                return step_to(cast_like(w, p), p), w
            upper = (_bits(w) + 0x8000) & ~0xFFFF
            step = step_to(lax.bitcast_convert_type(upper, jnp.float32), p)
            lower = _bits(w) - _bits(stepped(p, step).astype(jnp.float32))
            if self.dtype == "int8":
                lower = (lower + 128) >> 8
            limits = jnp.iinfo(self.dtype)
            return step, jnp.clip(lower, limits.min, limits.max).astype(self.dtype)

        leaves, treedef = jax.tree.flatten(moves, is_leaf=is_nothing)
        rows = zip(leaves, *(treedef.flatten_up_to(tree) for tree in (params, whole, state.master)), strict=True)
        pairs = [leaf(*row) for row in rows]
        moves, master = (treedef.unflatten([pair[i] for pair in pairs]) for i in range(2))
        return moves, MasterWeightsState(inner_state, master)

    def _splits(self, p: Any) -> bool:
        return self.dtype != "float32" and jnp.result_type(p) == jnp.bfloat16

    def _whole(self, p: Any, m: Any) -> Any:
        """Returns the float32 weight of a param."""
        if not self._splits(p):
            return m if is_short(p) else p
        lower = m.astype(jnp.int32) << (8 if self.dtype == "int8" else 0)
        return lax.bitcast_convert_type(_bits(p.astype(jnp.float32)) + lower, jnp.float32)


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.int32)
