"""orthogonalize, scale_by_shape: updates whose singular values are all about 1, scaled by their shape."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from ...core import kernels
from ...core.checks import Static
from ...core.leaves import Tree, is_nothing, map_leaves, paths, widen_tree
from ...core.norms import batches, matrix_norm
from ...core.ranges import Convert, NonNegative, PositiveInt
from ...core.transformation import EmptyState, GradientTransformation, transformation
from ...placement.owners import Distributed, as_stack, by_owners, owners_mesh
from .dimension_numbers import MuonNumbers, Stacks

Preconditioning = Literal["frobenius", "spectral", "aol", "schatten"]

POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


def _safe(rows: tuple) -> tuple:
    """Adds a margin for float arithmetic: X stays 1.01 times smaller than allowed, in its norm and at every step."""
    margins = [1.01**2] + [1.01] * (len(rows) - 1)
    return tuple((a / s, b / s**3, c / s**5) for s, (a, b, c) in zip(margins, rows, strict=True))


PRESETS = {
    "standard": (3.4445, -4.7750, 2.0315),
    "polar_express": _safe(POLAR_EXPRESS),
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}


def _coefficients(name: str, x: Any) -> Any:
    if isinstance(x, str):
        if x not in PRESETS:
            raise ValueError(f"{name} must be {' or '.join(map(repr, PRESETS))} or numbers, got {x!r}")
        return PRESETS[x]
    if hasattr(x, "dtype"):
        fits = x.ndim in (1, 2) and x.shape[-1] == 3
    else:
        x = tuple(tuple(row) if isinstance(row, Sequence) else row for row in x)
        fits = _is_row(x) or (len(x) > 0 and all(map(_is_row, x)))
    if not fits:
        raise ValueError(f"{name} must be three numbers, or three for each step, got {x!r}")
    return x


def _is_row(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 3 and not any(isinstance(number, tuple) for number in x)


Coefficients = Annotated[Any, Convert(_coefficients, "a preset's name, or rows of three numbers")]
"""Three numbers (a, b, c), one row of three for each step, or the name of a preset."""


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

    Raises ValueError for a leaf with fewer than two axes.

    Jordan et al. 2024, Muon; Bernstein & Newhouse 2024, arXiv:2409.20325.

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

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        needs_matrices(updates)
        rows = coefficient_rows(self.ns_coeffs, self.ns_steps)

        def stack(g):
            return newton_schulz(g, rows, self.eps, self.preconditioning, self.eps_is_floor)

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

    Raises ValueError for a leaf with fewer than two axes.

    Jordan et al. 2024, Muon; Liu et al. 2025, arXiv:2502.16982.

    >>> scale_by_shape(0.5).update(jnp.ones((1, 4)), EmptyState())[0].tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """

    stacks_matrices = True
    consistent_rms: NonNegative | None = None
    weight_dimension_numbers: Static[MuonNumbers | None] = None

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        needs_matrices(updates)
        stacks = Stacks(self.weight_dimension_numbers, updates)

        def leaf(g):
            rows, columns = g.shape[-2:]
            if self.consistent_rms is None:
                return g * max(1.0, columns / max(rows, 1)) ** 0.5
            return g * self.consistent_rms * max(columns, rows) ** 0.5

        like = None if params is None else stacks.stack(params)
        return stacks.back(map_leaves(leaf, stacks.stack(updates), params=like)), state


def needs_matrices(updates: Tree) -> None:
    """Raises ValueError for a leaf with fewer than two axes."""
    for path, g in zip(paths(updates), jax.tree.leaves(updates), strict=True):
        if jnp.ndim(g) < 2 and not is_nothing(g):
            raise ValueError(
                f"updates{path} has shape {jnp.shape(g)}; only a matrix can be made orthogonal: "
                "leave it out with `masked` or `partition`, as `muon` does"
            )


def coefficient_rows(ns_coeffs: Any, steps: int) -> Sequence[Any]:
    """Returns the coefficients of each step."""
    one_row = ns_coeffs.ndim == 1 if hasattr(ns_coeffs, "ndim") else _is_row(ns_coeffs)
    return [ns_coeffs] * steps if one_row else ns_coeffs


def map_matrices(fn: Callable, updates: Tree, params: Tree, distributed: Distributed | None = None) -> Tree:
    """Applies a function of stacks of matrices like `map_leaves`, but once for many small matrices of one shape.

    `fn` gets a tall matrix transposed, so it can share a call with wide ones. One large product keeps the machine
    busier than many small ones. On a mesh, each device does whole matrices of its own (see `by_owners`), unless
    `distributed` is "local".
    """
    leaves, treedef = jax.tree.flatten(widen_tree(updates, "updates"))
    there = [i for i, x in enumerate(leaves) if not is_nothing(x)]
    wide = [x.mT if _is_tall(x) else x for x in (leaves[i] for i in there)]
    mesh = owners_mesh(wide, distributed)
    if mesh is not None:
        done = by_owners(lambda x: (fn(x),), [(x,) for x in wide], mesh, stack=as_stack)
        wide = [x for (x,) in done]
    for some in batches(wide, size=2**18) if mesh is None else ():
        if len(some) > 1 and not any(jax.typeof(wide[some[0]]).sharding.spec):
            for i, x in zip(some, fn(jnp.stack([wide[i] for i in some])), strict=True):
                wide[i] = x
        else:
            for i in some:
                wide[i] = fn(wide[i])
    for i, x in zip(there, wide, strict=True):
        leaves[i] = x.mT if _is_tall(leaves[i]) else x
    return map_leaves(lambda _, u: u, updates, read=(treedef.unflatten(leaves),), params=params)


def _is_tall(x: jax.Array) -> bool:
    return x.shape[-2] > x.shape[-1]


def newton_schulz(
    g: jax.Array, rows: Any, eps: Any, preconditioning: Preconditioning = "frobenius", eps_is_floor: bool = False
) -> jax.Array:
    """Runs the iteration of `orthogonalize` on one matrix or a stack of them."""
    sharding = jax.typeof(g).sharding
    if any(axis is not None for axis in sharding.spec):  # explicit: let the compiler shard what is between
        local = partial(_newton_schulz, how=preconditioning, floor=eps_is_floor)
        return jax.sharding.auto_axes(out_sharding=sharding)(local)(g, rows, eps)
    return _newton_schulz(g, rows, eps, preconditioning, eps_is_floor)


def _newton_schulz(x: jax.Array, rows: Any, eps: Any, how: Preconditioning, floor: bool) -> jax.Array:
    tall = _is_tall(x)
    x = x.mT if tall else x
    x = kernels.newton_schulz(x / _size(x, eps, how, floor), rows, _iterate)
    return x.mT if tall else x


def _iterate(x: jax.Array, rows: Any) -> jax.Array:
    for a, b, c in rows:
        s = x @ x.mT.conj()
        x = a * x + (b * s + c * s @ s) @ x
    return x


def _size(x: jax.Array, eps: Any, how: Preconditioning, floor: bool) -> jax.Array:
    if how in ("frobenius", "spectral"):
        if how == "frobenius":
            norm = matrix_norm(x)
        else:
            norm = jnp.linalg.norm(x, ord=2, axis=(-2, -1), keepdims=True)
        return jnp.maximum(norm, eps) if floor else norm + eps
    s = x @ x.mT.conj()
    if how == "aol":
        return jnp.sqrt(jnp.maximum(jnp.sum(jnp.abs(s), axis=-1, keepdims=True), eps))
    return jnp.sqrt(jnp.maximum(matrix_norm(s), eps))
