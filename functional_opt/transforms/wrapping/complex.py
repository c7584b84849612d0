"""split_real_and_imaginary: complex leaves as pairs of real leaves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.leaves import Tree, cast_tree_like, check_leaves, is_nothing
from ...core.model_trees import visible
from ...core.slots import States
from ...core.transformation import GradientTransformation, Transformation, transformation


class SplitRealAndImaginaryArrays(NamedTuple):
    """The two parts of a complex leaf, in its place."""

    real: Any
    imaginary: Any


class SplitRealAndImaginaryState(NamedTuple):
    """`inner_state`: the state for trees with a pair in place of every complex leaf."""

    inner_state: States


@transformation
class split_real_and_imaginary(GradientTransformation):
    """Gives the inner transformation each complex leaf as two real leaves, its parts.

    It then treats the parts as independent, with a second moment each. The params determine which leaves are complex,
    or the updates if there are no params.

    Args:
        inner: the transformation of the real leaves.

    >>> from functional_opt import clip
    >>> tx, w = split_real_and_imaginary(clip(1.0)), jnp.array(0j)
    >>> complex(tx.update(jnp.array(3 + 0.5j), tx.init(w), w)[0])
    (1+0.5j)
    """

    inner: Transformation

    def init(self, params):
        return SplitRealAndImaginaryState(self.inner.init(_split(params, params)))

    def update(self, updates, state, params=None, **extra):
        params = None if params is None else visible(params, updates)
        like = updates if params is None else params
        check_leaves(updates, like)
        new, inner = self.inner.update(
            _split(updates, like), state.inner_state, None if params is None else _split(params, params), **extra
        )
        return cast_tree_like(_merge(new), like), SplitRealAndImaginaryState(inner)


def _split(tree: Tree, like: Tree) -> Tree:
    def leaf(x, kind):
        if is_nothing(x) or not jnp.issubdtype(jnp.result_type(kind), jnp.complexfloating):
            return x
        if isinstance(x, jax.ShapeDtypeStruct):
            part = jax.ShapeDtypeStruct(x.shape, jnp.finfo(x.dtype).dtype)
            return SplitRealAndImaginaryArrays(part, part)
        return SplitRealAndImaginaryArrays(jnp.real(x), jnp.imag(x))

    return jax.tree.map(leaf, tree, like, is_leaf=is_nothing)


def _merge(tree: Tree) -> Tree:
    def leaf(x):
        return jax.lax.complex(*x) if isinstance(x, SplitRealAndImaginaryArrays) else x

    return jax.tree.map(leaf, tree, is_leaf=lambda x: isinstance(x, SplitRealAndImaginaryArrays))
