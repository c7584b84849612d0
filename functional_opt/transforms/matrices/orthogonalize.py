"""orthogonalize, scale_by_shape: updates whose singular values are all about 1, scaled by their shape."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ...core.checks import Static
from ...core.leaves import Tree, as_updates, is_nothing, map_leaves, paths, widen_tree
from ...core.norms import batches
from ...core.paths import AllParams
from ...core.ranges import DType, NonNegative, PositiveInt
from ...core.transformation import EmptyState, GradientTransformation, transformation
from ...placement.owners import Distributed, as_stack, by_owners, owners_mesh
from .dimension_numbers import MuonNumbers, Stacks, axes_of, specs_of
from .newton_schulz import PRESETS, Coefficients, Preconditioning, coefficient_rows, is_tall, newton_schulz
from .widths import BaseParams, base_shapes, times_wider


@transformation
class orthogonalize(GradientTransformation):
    """Replaces each matrix roughly by the nearest orthogonal one: most singular values end between 0.7 and 1.2.

    Runs ns_steps steps of a Newton–Schulz iteration, X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ, from
    X = G / (‖G‖ + eps). Leaves with more than two axes are stacks of matrices, in the last two axes.

    Args:
        ns_coeffs: (a, b, c), or one such row for each step, or a preset: "standard" (Jordan's), "polar_express" (five
            rows, the best polynomial of each step for singular values from 0.001 to 1, with its safety factor 1.01,
            Amsel et al. 2025, arXiv:2505.16932) or "dion" (five rows, Optax's).
        ns_steps: the number of steps, ≥ 1; unused if ns_coeffs has a row for each step.
        eps: added to the norm, ≥ 0.
        preconditioning: what G is divided by: its "frobenius" or "spectral" norm, "aol" (a number for each row,
            Boissin et al. 2025, arXiv:2512.04632) or its "schatten" 4-norm (arXiv:2506.10935).
        weight_dimension_numbers: which axes make up the matrices, if not the last two; as in `scale_by_muon`.
        eps_is_floor: whether eps is the least norm, max(‖G‖, eps), as in torch; it is so for "aol" and "schatten".
        distributed: how matrices on a mesh of several devices are worked on. "owners": matrices of one shape are
            divided among the devices, which compute theirs whole, and the results go back to where the matrices lie.
            "local": each product is computed where its factors lie, as the compiler splits it. None means "owners".
        ns_dtype: dtype of the matrices and products in the iteration, such as "float16"; None means float32. An
            accelerator computes products of 16 bits faster, and "float16" rounds 8 times less than "bfloat16".
            Complex matrices keep their dtype.

    Matrices at least twice as wide as tall, or as tall as wide, do the steps in pairs on A, which is smaller than X
    (see `newton_schulz`). The result is the same up to rounding.

    Raises ValueError for a leaf with fewer than two axes.

    Jordan et al. 2024, Muon; Bernstein & Newhouse 2024, arXiv:2409.20325; Zhang et al. 2026, Gram Newton–Schulz.

    >>> x = orthogonalize(ns_steps=10).update(jnp.array([[3.0, 0.0], [0.0, -4.0]]), EmptyState())[0]
    >>> bool(jnp.all(abs(abs(jnp.diag(x)) - 1) < 0.3))
    True
    """

    preconditions = True
    stacks_matrices = True
    ns_coeffs: Coefficients = PRESETS["standard"]
    ns_steps: Static[PositiveInt] = 5
    eps: NonNegative = 1e-8
    preconditioning: Static[Preconditioning] = "frobenius"
    weight_dimension_numbers: Static[MuonNumbers | None] = None
    eps_is_floor: Static[bool] = dataclasses.field(default=False, kw_only=True)
    distributed: Static[Distributed | None] = dataclasses.field(default=None, kw_only=True)
    ns_dtype: Static[DType | None] = dataclasses.field(default=None, kw_only=True)

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        needs_matrices(updates)
        rows = coefficient_rows(self.ns_coeffs, self.ns_steps)

        def stack(g):
            return newton_schulz(g, rows, self.eps, self.preconditioning, self.eps_is_floor, self.ns_dtype)

        stacks = Stacks(self.weight_dimension_numbers, updates)
        like = None if params is None else stacks.stack(params)
        return stacks.back(map_matrices(stack, stacks.stack(updates), like, self.distributed)), state


@transformation
class scale_by_shape(GradientTransformation):
    """Scales matrices by shape: u = g · √max(1, columns / rows), or u = g · consistent_rms · √max(columns, rows).

    The last two axes of a leaf are rows (inputs, fan-in) and columns (outputs, fan-out). The first formula, for
    consistent_rms=None, gives an orthogonal matrix with at least as many columns as rows the norm 1 as a map from
    inputs to outputs, both measured by root mean square; one with more rows stays as it is. The second gives every
    orthogonal matrix the root mean square consistent_rms.

    Args:
        consistent_rms: the root mean square of the result, ≥ 0, about 0.2 for Adam's updates; None for the first
            formula.
        weight_dimension_numbers: which axes make up the matrices, if not the last two; as in `scale_by_muon`.
        base_params: the params of a base model, as in `scale_by_mup`, so that its learning rate fits all widths. Then
            the formula is that of the shape in the base model, times √(rₒᵤₜ / rᵢₙ) for rᵢₙ times as many rows and
            rₒᵤₜ times as many columns. As a map from inputs to outputs, both measured by root mean square, an
            orthogonal update has the same norm at all widths.

    Raises ValueError for a leaf with fewer than two axes, and for base_params that do not fit, or with blocks.

    Jordan et al. 2024, Muon; Liu et al. 2025, arXiv:2502.16982. base_params: Yang, Simon & Bernstein 2023,
    arXiv:2310.17813, condition 1.

    >>> scale_by_shape(0.5).update(jnp.ones((1, 4)), EmptyState())[0].tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """

    stacks_matrices = True
    consistent_rms: NonNegative | None = None
    weight_dimension_numbers: Static[MuonNumbers | None] = None
    base_params: Static[BaseParams | None] = dataclasses.field(default=None, kw_only=True)

    def init(self, params):
        if self.base_params is not None and not isinstance(params, AllParams):
            self._wider(params)  # shapes that do not fit are an error before training starts
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        needs_matrices(updates)
        stacks = Stacks(self.weight_dimension_numbers, updates)

        def formula(rows: float, columns: float) -> Any:
            if self.consistent_rms is None:
                return max(1.0, columns / max(rows, 1)) ** 0.5
            return self.consistent_rms * max(columns, rows) ** 0.5

        stacked, like = stacks.stack(updates), None if params is None else stacks.stack(params)
        if self.base_params is None:
            return stacks.back(map_leaves(lambda g: g * formula(*g.shape[-2:]), stacked, params=like)), state

        def factor(g: Any, r_in: float, r_out: float) -> Any:
            return (r_out / r_in) ** 0.5 * formula(g.shape[-2] / r_in, g.shape[-1] / r_out)

        leaves, treedef = jax.tree.flatten(stacked, is_leaf=is_nothing)
        pairs = zip(leaves, self._wider(updates), strict=True)
        read = (treedef.unflatten([None if is_nothing(g) else factor(g, *wider) for g, wider in pairs]),)
        new = map_leaves(lambda g, f: g * f, stacked, read=read, params=like, same_shape=False)
        return stacks.back(new), state

    def _wider(self, tree: Tree) -> list[tuple[float, float]]:
        """Returns how many times more rows and columns each leaf has than in the base model."""
        leaves, specs = jax.tree.leaves(tree, is_leaf=is_nothing), specs_of(self.weight_dimension_numbers, tree)
        found = []
        rows = zip(paths(tree, is_nothing), leaves, base_shapes(self.base_params, tree), specs, strict=True)
        for path, x, base, spec in rows:
            if is_nothing(x):
                found.append((1.0, 1.0))
                continue
            if spec is not None and any(spec[2:]):
                raise ValueError(f"base_params: weight_dimension_numbers cut params{path} into blocks, got {spec}")
            wider = times_wider(path, jnp.shape(x), base)
            sides = ((-2,), (-1,)) if spec is None else map(axes_of, spec[:2])
            r_in, r_out = (math.prod(wider[axis] for axis in axes) for axes in sides)
            found.append((r_in, r_out))
        return found


def needs_matrices(tree: Tree, name: str = "updates") -> None:
    """Raises ValueError for a leaf with fewer than two axes."""
    for path, x in zip(paths(tree), jax.tree.leaves(tree), strict=True):
        if jnp.ndim(x) < 2 and not is_nothing(x):
            raise ValueError(
                f"{name}{path} has shape {jnp.shape(x)}, but this rule is for matrices, with at least two axes: "
                "leave the leaf out with `masked`, or give it another rule with `partition`, as `muon` does"
            )


STACKED = 2**22
"""The most elements of a matrix that shares a call with others of its shape."""


def map_matrices(fn: Callable, updates: Tree, params: Tree, distributed: Distributed | None = None) -> Tree:
    """Applies a function of stacks of matrices like `map_leaves`, but once for many small matrices of one shape.

    `fn` gets a tall matrix transposed, so it can share a call with wide ones. One large product keeps the machine
    busier than many small ones. On a mesh, each device does whole matrices of its own (see `by_owners`), unless
    `distributed` is "local".
    """
    leaves, treedef = jax.tree.flatten(widen_tree(updates, "updates"))
    there = [i for i, x in enumerate(leaves) if not is_nothing(x)]
    wide = [x.mT if is_tall(x) else x for x in (leaves[i] for i in there)]
    mesh = owners_mesh(wide, distributed)
    if mesh is not None:
        done = by_owners(lambda x: (fn(x),), [(x,) for x in wide], mesh, stack=as_stack)
        wide = [x for (x,) in done]
    for some in batches(wide, size=STACKED) if mesh is None else ():
        if len(some) > 1 and not any(jax.typeof(wide[some[0]]).sharding.spec):
            for i, x in zip(some, fn(jnp.stack([wide[i] for i in some])), strict=True):
                wide[i] = x
        else:
            for i in some:
                wide[i] = fn(wide[i])
    for i, x in zip(there, wide, strict=True):
        leaves[i] = x.mT if is_tall(leaves[i]) else x
    return as_updates(treedef.unflatten(leaves), updates, params)
