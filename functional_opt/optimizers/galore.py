"""GaLore: runs an optimizer on gradients of matrices projected onto a few singular vectors."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import Static, checked
from ..core.leaves import Tree, check_leaves, is_nothing, map_leaves, paths, widen, zeros_like
from ..core.paths import Mask
from ..core.ranges import DType, PositiveInt, Real
from ..core.schedule import Rate
from ..core.sharding import replicate
from ..core.slots import Counter, Exact16, States
from ..core.transformation import GradientTransformation, Transformation, increment, transformation, zero_count
from ..placement.like import keep_placement
from ..transforms.combining.chain import chain
from ..transforms.matrices.dimension_numbers import GaLoreDimensionNumbers, GaLoreNumbers, axes_of, specs_of
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from .adam import scale_by_adam


class GaLoreState(NamedTuple):
    """`count`: steps done. `base_optimizer_state`: that of the projected leaves. `projector`: P, or None."""

    count: Counter
    base_optimizer_state: States
    projector: Exact16


@transformation
class scale_by_galore(GradientTransformation):
    """GaLore's direction: u = scale · P · base_optimizer(Pᵀ·g), P the first singular vectors of g on its longer side.

    P is recomputed every update_proj_gap steps. The base optimizer's slots for a matrix have only rank × the shorter
    side elements. Leaves that are not matrices go to the base optimizer unchanged.

    Args:
        rank: number of singular vectors, ≥ 1; all of them if a side is shorter.
        update_proj_gap: number of steps from one P to the next, ≥ 1; the decomposition is computed only then.
        scale: a factor on the updates of the matrices.
        base_optimizer: a gradient transformation that reads no params; `scale_by_adam()` if None.
        weight_dimension_numbers: which axes of a leaf are rows and columns: `GaLoreDimensionNumbers` (for every leaf
            with more than one axis), a tree of them with None for leaves that are not projected, or a function from
            params to such a tree. If None, the leaves with two axes are matrices.
        state_dtype: storage dtype of P and of the moments of the default base optimizer. None means the params'
            dtype, or float32 for 16-bit params. A base optimizer that you pass uses its own settings.

    Raises ValueError, naming the leaf, if dimension numbers do not name each of its axes once.

    Zhao et al. 2024, arXiv:2403.03507. As in Optax, P is on the longer side, which takes the least memory; in the
    paper it is on the shorter.

    >>> tx, g = scale_by_galore(rank=1, base_optimizer=chain()), jnp.diag(jnp.array([3.0, 1.0]))
    >>> u, state = tx.update(g, tx.init(g))
    >>> [round(x, 3) for x in u.ravel().tolist()], state.projector.shape
    ([3.0, 0.0, 0.0, 0.0], (2, 1))

    Differs from Optax: `projector` is None for a leaf without P; the gradients of matrices may be complex.
    """

    rank: Static[PositiveInt] = 128
    update_proj_gap: PositiveInt = 200
    scale: Real = 1.0
    base_optimizer: Transformation | None = None
    weight_dimension_numbers: Static[GaLoreNumbers | None] = None
    state_dtype: Static[DType | None] = None

    @property
    def preconditions(self) -> bool:
        return self._base.preconditions

    def init(self, params):
        leaves, treedef = jax.tree.flatten(params, is_leaf=is_nothing)
        p, small = [], []
        for x, view in zip(leaves, self._views(params), strict=True):
            p.append(None if view is None else view.zeros(x, self.rank, self.state_dtype)[0])
            small.append(x if view is None else view.zeros(x, self.rank, None)[1])
        base_state = self._base.init(treedef.unflatten(small))
        return GaLoreState(zero_count(), base_state, treedef.unflatten(p))

    def update(self, updates, state, params=None, **extra):
        if params is not None:
            check_leaves(updates, params)
        leaves, treedef = jax.tree.flatten(updates, is_leaf=is_nothing)
        old = treedef.flatten_up_to(state.projector)
        views = [None if is_nothing(g) else view for g, view in zip(leaves, self._views(updates), strict=True)]
        for i, (g, x, view) in enumerate(zip(leaves, old, views, strict=True)):
            if view is not None and jnp.shape(x) != (shape := view.projector_shape(self.rank)):
                raise ValueError(
                    f"updates{paths(updates, is_nothing)[i]} has shape {jnp.shape(g)} and needs a projector of "
                    f"shape {shape}, but the optimizer state has one of shape {jnp.shape(x)}"
                )
        g = [x if view is None else view.matrix(widen(x)) for x, view in zip(leaves, views, strict=True)]

        def decompose():
            both = zip(g, old, views, strict=True)
            return [x if view is None else view.projector(m, self.rank).astype(x.dtype) for m, x, view in both]

        p = jax.lax.cond(state.count % self.update_proj_gap == 0, decompose, lambda: old)
        rows = list(zip(g, p, views, strict=True))
        small = [m if view is None else view.project(m, widen(x)) for m, x, view in rows]
        low, base_state = self._base.update(treedef.unflatten(small), state.base_optimizer_state, None, **extra)
        rows = list(zip(treedef.flatten_up_to(low), p, views, strict=True))
        full = [m if view is None else self.scale * view.back(m, widen(x)) for m, x, view in rows]
        updates = map_leaves(_sharded_as, updates, read=(treedef.unflatten(full),), params=params)
        p = keep_placement(p, old)
        return updates, GaLoreState(increment(state.count), base_state, treedef.unflatten(p))

    @property
    def _base(self) -> GradientTransformation:
        return scale_by_adam(state_dtype=self.state_dtype) if self.base_optimizer is None else self.base_optimizer

    def _views(self, tree: Tree) -> list["_View | None"]:
        """Returns a matrix view of each leaf, None for a leaf that is not a matrix."""
        leaves = jax.tree.leaves(tree, is_leaf=is_nothing)
        specs = specs_of(self.weight_dimension_numbers, tree)
        if self.weight_dimension_numbers is None:
            specs = [GaLoreDimensionNumbers() if np.ndim(x) == 2 else None for x in leaves]
        views: list[_View | None] = [None] * len(leaves)
        for i, (spec, x) in enumerate(zip(specs, leaves, strict=True)):
            if spec is not None and not is_nothing(x):
                views[i] = _View(spec, jnp.shape(x), lambda i=i: paths(tree, is_nothing)[i])
        return views


class _View:
    """A leaf as a matrix."""

    def __init__(self, spec: GaLoreDimensionNumbers, shape: tuple[int, ...], path: Callable[[], str]):
        rows, columns = ([axis % max(len(shape), 1) for axis in axes_of(axes)] for axes in spec[:2])
        if sorted(rows + columns) != list(range(len(shape))) or any(spec[2:]):
            raise ValueError(
                f"weight_dimension_numbers{path()} must name each axis of a leaf of shape {shape} once, no blocks, "
                f"got {spec}"
            )
        self.order = rows + columns
        self.turned = [shape[axis] for axis in self.order]
        self.shape = math.prod(self.turned[: len(rows)]), math.prod(self.turned[len(rows) :])
        self.left = self.shape[0] >= self.shape[1]

    def zeros(self, like: Any, rank: int, dtype: Any) -> tuple[Any, Any]:
        """Returns P and the projected leaf, both zeros, sharded like the rows or columns of the matrix."""
        zero = zeros_like(like, dtype)
        zero = zero if isinstance(like, jax.ShapeDtypeStruct) else self.matrix(zero)
        rows, columns = (jnp.sum(zero.reshape(self.shape), axis=axis) for axis in (1, 0))
        of_rank = jnp.zeros(min(rank, *self.shape), zero.dtype)
        if self.left:
            return rows[:, None] + of_rank, of_rank[:, None] + columns
        return columns[:, None] + of_rank, rows[:, None] + of_rank

    def projector_shape(self, rank: int) -> tuple[int, int]:
        return self.shape[0 if self.left else 1], min(rank, *self.shape)

    def matrix(self, g: jax.Array) -> jax.Array:
        g = replicate(g)  # a decomposition needs the full matrix
        return g.transpose(self.order).reshape(self.shape)

    def projector(self, g: jax.Array, rank: int) -> jax.Array:
        u, _, vh = jnp.linalg.svd(g, full_matrices=False)
        return (u if self.left else vh.conj().T)[:, : min(rank, *self.shape)]

    def project(self, g: jax.Array, p: jax.Array) -> jax.Array:
        return p.conj().T @ g if self.left else g @ p

    def back(self, small: jax.Array, p: jax.Array) -> jax.Array:
        u = p @ small if self.left else small @ p.conj().T
        return u.reshape(self.turned).transpose([self.order.index(axis) for axis in range(len(self.order))])


def _sharded_as(g: jax.Array, u: jax.Array) -> jax.Array:
    return jnp.zeros_like(g) + u


@checked
def galore(
    learning_rate: Rate,
    rank: PositiveInt = 128,
    update_proj_gap: PositiveInt = 200,
    scale: Real = 1.0,
    base_optimizer: Transformation | None = None,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    weight_dimension_numbers: GaLoreNumbers | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """GaLore: w ← w − learning_rate · (scale · P·base_optimizer(Pᵀ·g) + weight_decay · w). See `scale_by_galore`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.
        weight_decay, mask: as in `add_decayed_weights`.

    Zhao et al. 2024, arXiv:2403.03507.

    >>> galore(0.01, rank=4)
    chain(scale_by_galore(rank=4), add_decayed_weights(), scale_by_learning_rate(0.01))
    """
    rule = scale_by_galore(rank, update_proj_gap, scale, base_optimizer, weight_dimension_numbers, state_dtype)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
