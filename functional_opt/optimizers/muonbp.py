"""MuonBP: Muon that makes the blocks of a matrix orthogonal by themselves, and the whole at every few steps."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import Tree, as_updates, is_nothing, map_leaves, paths, widen_tree, zeros_like, zip_leaves
from ..core.paths import Frozen, Mask
from ..core.ranges import Decay, DType, NonNegative, PositiveInt
from ..core.schedule import Rate
from ..core.slots import Counter, Signed
from ..core.transformation import EmptyState, GradientTransformation, increment, transformation, zero_count
from ..placement.like import keep_placement
from ..placement.mesh import axis_names, sharding_of, spec_of
from ..placement.owners import Distributed
from ..transforms.combining.chain import chain
from ..transforms.combining.select import partition
from ..transforms.matrices.dimension_numbers import MuonDimensionNumbers, MuonNumbers, Stacks, axes_of, specs_of
from ..transforms.matrices.newton_schulz import PRESETS, Coefficients
from ..transforms.matrices.orthogonalize import needs_matrices, orthogonalize, scale_by_shape
from ..transforms.matrices.routing import Layout
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from .adam import adamw
from .muon import muon_labels


class ScaleByMuonBPState(NamedTuple):
    """`count`: steps done. `mu`: running mean of g."""

    count: Counter
    mu: Signed


@transformation
class scale_by_muonbp(GradientTransformation):
    """MuonBP's direction: u = s·orthogonalize(m) at every period-th step, from the first on, else block by block.

    m ← beta·m + (1 − beta)·g. At the other steps each block of m is made orthogonal by itself, and
    u = block_scale·s·orthogonalize(block), where s is that of `scale_by_shape`: at full steps for the shape of the
    matrix, at block steps for that of the block.

    If the blocks of a leaf are its shards on a mesh, nothing is sent at block steps. That needs a mesh with explicit
    axes, or one axis of as many devices as blocks: else the compiler may place the blocks otherwise. The numbers do
    not depend on the mesh.

    Args:
        blocks: dimension numbers with blocks, as in `MuonDimensionNumbers`, for all leaves, in a tree, by a function
            or by path rules; see `shard_blocks` for those of shards. A leaf with None is always whole.
        period: from one full step to the next, ≥ 1; 1 is Muon.
        block_scale: the ratio of the learning rates of block steps and of full steps, ≥ 0.
        consistent_rms: as in `scale_by_shape`; None for its first formula.
        beta: decay rate of the mean, in [0, 1).
        nesterov: whether to use beta·m + (1 − beta)·g in place of m, which the paper does not.
        ns_coeffs, ns_steps, eps, ns_dtype: as in `orthogonalize`. distributed: as there, at full steps.
        state_dtype: storage dtype of m. None means the params' dtype, or float32 for 16-bit params.
        weight_dimension_numbers: which axes are rows and columns, if not the last two; as in `scale_by_muon`.

    Raises ValueError for a leaf with fewer than two axes, or that the blocks do not fit.

    Khaled, Ozkara, Yu, Hong & Park 2025, arXiv:2510.16981, algorithm 1.

    >>> halves = MuonDimensionNumbers(0, 1, output_blocks=2)
    >>> tx, g = scale_by_muonbp(halves, period=2), jnp.array([[3.0, 0.0, 1.0, 1.0], [0.0, 2.0, 1.0, 1.0]])
    >>> full, state = tx.update(g, tx.init(g))
    >>> block, _ = tx.update(g, state)
    >>> jnp.linalg.matrix_rank(full[:, 2:]).item(), abs(block[0, 1]).item() < 1e-6
    (1, True)
    """

    preconditions = True
    stacks_matrices = True
    blocks: Static[MuonNumbers]
    period: Static[PositiveInt] = 5
    block_scale: NonNegative = 1.0
    consistent_rms: NonNegative | None = 0.2
    beta: Decay = 0.95
    nesterov: Static[bool] = False
    ns_coeffs: Coefficients = PRESETS["standard"]
    ns_steps: Static[PositiveInt] = 5
    eps: NonNegative = 1e-8
    state_dtype: Static[DType | None] = None
    weight_dimension_numbers: Static[MuonNumbers | None] = None
    distributed: Static[Distributed | None] = dataclasses.field(default=None, kw_only=True)
    ns_dtype: Static[DType | None] = dataclasses.field(default=None, kw_only=True)

    def init(self, params):
        needs_matrices(params, "params")
        for numbers in (self.weight_dimension_numbers, self._blocks(params)):
            Stacks(numbers, params)
        return ScaleByMuonBPState(zero_count(), zeros_like(params, self.state_dtype))

    def update(self, updates, state, params=None, **extra):
        needs_matrices(updates)
        if params is not None:
            zip_leaves((updates, params), ("updates", "params"))

        def mean(g, m):
            m = self.beta * m + (1 - self.beta) * g
            return self.beta * m + (1 - self.beta) * g if self.nesterov else m, m

        def direction(numbers: Any, distributed: Distributed | None, scale: Any = 1.0) -> Any:
            tx = orthogonalize(
                *(self.ns_coeffs, self.ns_steps, self.eps),
                weight_dimension_numbers=numbers,
                distributed=distributed,
                ns_dtype=self.ns_dtype,
            )
            u, _ = tx.update(m, EmptyState())
            u, _ = scale_by_shape(self.consistent_rms, numbers).update(u, EmptyState())
            return jax.tree.map(lambda x: scale * x, u)

        m, mu = map_leaves(mean, widen_tree(updates, "updates"), state.mu)
        u = jax.lax.cond(
            state.count % self.period == 0,
            lambda: direction(self.weight_dimension_numbers, self.distributed),
            lambda: direction(self._blocks(updates), "local", self.block_scale),
        )
        new = as_updates(u, updates, params)
        return keep_placement(new, updates), ScaleByMuonBPState(increment(state.count), mu)

    def _blocks(self, tree: Tree) -> Frozen:
        """Returns the numbers of block steps: without blocks, those of full steps."""
        both = zip(specs_of(self.blocks, tree), specs_of(self.weight_dimension_numbers, tree), strict=True)
        specs = tuple(full if block is None else block for block, full in both)
        return Frozen(specs, jax.tree.structure(tree, is_leaf=is_nothing))


@checked
def shard_blocks(params: Tree, weight_dimension_numbers: MuonNumbers | None = None) -> Tree:
    """Returns dimension numbers whose blocks are the shards of the params on their mesh, for `muonbp`.

    Args:
        params: arrays on a mesh, or `jax.ShapeDtypeStruct`s with a sharding, outside of jit.
        weight_dimension_numbers: which axes are rows and columns, if not the last two; as in `scale_by_muon`.

    Returns a tree with None for leaves with fewer than two axes and for those that are whole. Raises ValueError for a
    leaf whose shards are no blocks: one split along another axis of its rows or columns than the first.

    >>> from jax.sharding import NamedSharding, PartitionSpec
    >>> mesh = jax.sharding.AbstractMesh((4,), ("model",))
    >>> w = jax.ShapeDtypeStruct((8, 8), "float32", sharding=NamedSharding(mesh, PartitionSpec(None, "model")))
    >>> shard_blocks({"w": w, "b": jnp.ones(3)})
    {'b': None, 'w': MuonDimensionNumbers(reduction_axis=(0,), output_axis=(1,), output_blocks=4)}
    """

    def leaf(path: str, x: Any, numbers: Any) -> MuonDimensionNumbers | None:
        sharding = sharding_of(x)
        if jnp.ndim(x) < 2 or sharding is None:
            return None
        shards = [math.prod(sharding.mesh.shape[name] for name in axis_names(entry)) for entry in spec_of(x)]
        sides = [axes_of(axes) for axes in ((-2, -1) if numbers is None else numbers[:2])]
        sides = [tuple(axis % jnp.ndim(x) for axis in axes) for axes in sides]
        if any(shards[axis] > 1 for _, *others in sides for axis in others):
            raise ValueError(
                f"params{path} of shape {jnp.shape(x)} is split as {sharding.spec}, but its rows and columns are the "
                f"axes {sides[0]} and {sides[1]}, and their shards are blocks only along the first of these"
            )
        counts = [shards[axes[0]] if shards[axes[0]] > 1 else None for axes in sides]
        return MuonDimensionNumbers(*sides, *counts) if any(counts) else None

    leaves, treedef = jax.tree.flatten(params, is_leaf=is_nothing)
    rows = zip(paths(params, is_nothing), leaves, specs_of(weight_dimension_numbers, params), strict=True)
    return treedef.unflatten([None if is_nothing(x) else leaf(path, x, numbers) for path, x, numbers in rows])


@checked
def muonbp(
    learning_rate: Rate,
    blocks: Static[MuonNumbers],
    period: PositiveInt = 5,
    block_scale: NonNegative = 1.0,
    consistent_rms: NonNegative | None = 0.2,
    beta: Decay = 0.95,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask | None = None,
    *,
    nesterov: bool = False,
    ns_coeffs: Coefficients = PRESETS["standard"],
    ns_steps: PositiveInt = 5,
    eps: NonNegative = 1e-8,
    adam_b1: Decay = 0.9,
    adam_b2: Decay = 0.999,
    adam_weight_decay: Rate = 0.0,
    adam_learning_rate: Rate | None = None,
    matrix_mask: Mask | None = None,
    weight_dimension_numbers: MuonNumbers | None = None,
    matrix_layout: Layout | None = None,
    state_dtype: DType | None = None,
    distributed: Distributed | None = None,
    ns_dtype: DType | None = None,
) -> partition:
    """MuonBP for hidden matrices, AdamW for other leaves: w ← w − learning_rate · (u + weight_decay · w).

    See `scale_by_muonbp` for u and `adamw` for the other leaves.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; Adam's with consistent_rms=0.2.
        blocks, period, block_scale, consistent_rms, beta, nesterov, distributed: as in
            `scale_by_muonbp`.
        weight_decay, weight_decay_mask: for the matrices, as in `add_decayed_weights`.
        adam_learning_rate: learning rate of the other leaves; learning_rate if None.
        matrix_mask, weight_dimension_numbers, matrix_layout: which leaves are matrices for MuonBP, and how they are
            stored; as in `muon_labels`.

    Khaled et al. 2025, arXiv:2510.16981.

    >>> tx = muonbp(1e-3, {"**/up": MuonDimensionNumbers(0, 1, output_blocks=2)})
    >>> tx.param_labels({"mlp": {"up": jnp.ones((2, 4)), "bias": jnp.ones(4)}})
    {'mlp': {'bias': 'adam', 'up': 'muonbp'}}
    """
    rule = scale_by_muonbp(
        *(blocks, period, block_scale, consistent_rms, beta, nesterov, ns_coeffs, ns_steps, eps, state_dtype),
        weight_dimension_numbers,
        distributed=distributed,
        ns_dtype=ns_dtype,
    )
    matrices = chain(
        rule, add_decayed_weights(weight_decay, weight_decay_mask), scale_by_learning_rate(learning_rate)
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    rest = adamw(rate, adam_b1, adam_b2, eps, weight_decay=adam_weight_decay, state_dtype=state_dtype)
    labels = muon_labels(matrix_mask, weight_dimension_numbers, "muonbp", matrix_layout)
    return partition({"adam": rest, "muonbp": matrices}, labels)
