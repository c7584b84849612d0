"""flatten: all leaves as one vector."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.checks import Static
from ...core.leaves import Tree, cast_like, is_inexact, is_nothing, zip_leaves
from ...core.model_trees import visible
from ...core.ranges import PositiveInt
from ...core.sharding import replicate, reshard_like
from ...core.transformation import GradientTransformation, Transformation, transformation
from ...placement.like import keep_placement


@transformation
class flatten(GradientTransformation):
    """Gives the inner transformation all leaves as one vector: fewer and larger operations for many small leaves.

    The vector has the dtype that the leaves' dtypes promote to. A leaf whose gradient is None counts as zeros there,
    because the vector has no gaps, and gets no update.

    Args:
        inner: a transformation that treats all elements alike: no masks, and no norms or ranks of single leaves.
        multiple_of: zeros are added to the vector until its length is a multiple of this, ≥ 1. With a multiple of the
            number of devices, `shard(flatten(inner, multiple_of=n))` can always split it.

    >>> from functional_opt import trace
    >>> tx = flatten(trace(0.9))
    >>> tx.init({"a": jnp.ones(2), "b": jnp.ones((1, 2))}).trace.shape
    (4,)
    """

    inner: Transformation
    multiple_of: Static[PositiveInt] = 1

    def init(self, params):
        return self.inner.init(self._vector(params, params))

    def update(self, updates, state, params=None, **extra):
        params = None if params is None else visible(params, updates)
        like = updates if params is None else params
        flat = self._vector(updates, like)
        new, after = self.inner.update(flat, state, None if params is None else self._vector(params, params), **extra)
        return keep_placement(_tree(new, updates, like), updates), keep_placement(after, state)

    def _vector(self, tree: Tree, like: Tree) -> Any:
        """Returns the leaves of `tree` as one vector, with zeros where it has None and `like` has a leaf."""
        leaves = [jnp.zeros_like(y) if is_nothing(x) else x for x, y in _pairs(tree, like)]
        n = sum(map(np.size, leaves))
        missing = -n % self.multiple_of
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves):
            return jax.ShapeDtypeStruct((n + missing,), jnp.result_type(*leaves))
        parts = [jnp.ravel(replicate(x)) for x in leaves]
        padding = [jnp.zeros(missing, jnp.result_type(*leaves))] if missing else []
        return jnp.concatenate([*parts, *padding]) if parts else jnp.zeros(0)


def _tree(vector: jax.Array, updates: Tree, like: Tree) -> Tree:
    parts, start = [], 0
    _, rows = zip_leaves((updates, like), ("updates", "params"))
    for x, y in rows:
        if is_nothing(y) or not is_inexact(y):
            parts.append(None)
            continue
        part = vector[start : start + jnp.size(y)].reshape(jnp.shape(y))
        start += jnp.size(y)
        part = cast_like(part if jnp.iscomplexobj(y) else part.real, y)
        parts.append(None if is_nothing(x) else reshard_like(part, y))
    return jax.tree.structure(updates, is_leaf=is_nothing).unflatten(parts)


def _pairs(tree: Tree, like: Tree) -> list[tuple]:
    """Pairs the leaves of both trees, without those that `like` lacks and those that cannot have a gradient."""
    _, rows = zip_leaves((tree, like), ("updates", "params"))
    return [(x, y) for x, y in rows if not is_nothing(y) and is_inexact(y)]
