"""Shampoo: preconditions every axis of a leaf with a root of the gradients' second moments along it."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import check_leaves, map_leaves, widen_tree, zeros_like
from ..core.norms import abs_sq, safe_sqrt
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative, PositiveInt
from ..core.schedule import Rate
from ..core.slots import Counter, Exact, Unsigned
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..placement.like import keep_placement
from ..placement.owners import Distributed, Owners
from ..transforms.combining.chain import chain
from ..transforms.matrices.kronecker import (
    absent,
    gram,
    map_factors,
    multiply_axis,
    slots_by_axis,
    sum_of_slices,
    unless_overflown,
)
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from ..transforms.scaling.moments import trace

Grafting = Literal["none", "sgd", "adagrad", "rmsprop", "adam"]


class ScaleByShampooState(NamedTuple):
    """`count`: steps done. `nu`: sums or means of |g|², for the leaves that need them.

    `statistics[k]`: for every leaf, sums or means of G·Gᴴ, G a block of its gradient unfolded along axis k, in the
    shape (blocks, n, n). `preconditioners[k]`: their inverse roots. A slot that a leaf does not use is zeros of shape
    (1,).
    """

    count: Counter
    nu: Unsigned
    statistics: Exact
    preconditioners: Exact


@transformation
class scale_by_shampoo(GradientTransformation):
    """Shampoo's direction: L ← beta2·L + (1 − beta2)·g·gᴴ, R likewise of gᴴ·g; u = s · L̂^(−1/4)·g·R̂^(−1/4).

    L̂ = L / (1 − beta2ᵗ) + eps·λ·1, λ its largest eigenvalue. A leaf of k axes has k such matrices and the exponent
    −1/(2k). The roots are recomputed only every preconditioner_every steps, by eigh.

    Grafting takes the length of u from another rule: s = ‖d‖ / ‖u‖ over the leaf, with

        sgd: d = g;  adagrad: d = g / (√Σ|g|² + graft_eps);
        rmsprop: d = g / (√v + graft_eps);  adam: d = g / (√(v / (1 − beta2ᵗ)) + graft_eps).

    v ← beta2·v + (1 − beta2)·|g|². With "none", s = 1. A leaf with fewer than two axes gets d itself. With "none"
    this is the d of adam, or of adagrad if beta2 is None: Shampoo in blocks of one element.

    Args:
        block_size: an axis longer than this is cut into equal blocks that are at most this long. Each block of the
            leaf has its own matrices.
        beta2: decay rate of L, R and v, in [0, 1); None uses sums instead of means, as the first paper does.
        eps: the ridge, as a fraction of the largest eigenvalue, ≥ 0.
        grafting: "none", "sgd", "adagrad", "rmsprop" or "adam".
        preconditioner_every: number of steps from one set of roots to the next, ≥ 1.
        start_preconditioning_step: the step, counted from 1, at which the first roots are computed; before it u = d,
            or u = g with "none".
        graft_eps: added to the roots in d, ≥ 0.
        state_dtype: storage dtype of v. None means the params' dtype, or float32 for 16-bit params. Matrices are at
            least float32.
        distributed: as in `orthogonalize`, for all products and roots. Owners keep the matrices split over all
            devices where these divide them.

    Raises ValueError for grafting="rmsprop" or "adam" without beta2.

    Gupta, Koren & Singer 2018, arXiv:1802.09568; Anil et al. 2020, arXiv:2002.09018, for blocks and grafting. Differs
    from these: the blocks of an axis have the same length, means have a bias correction, the ridge is relative, and
    there is one momentum (`trace`), not one for each rule.

    Derivatives treat L and R as constants in the roots. Those with respect to eps are exact; those with respect to
    beta2 and to the gradients lack what goes through L and R.

    >>> tx, g = scale_by_shampoo(beta2=None, grafting="none"), jnp.array([[2.0, 1.0], [0.0, 1.0]])
    >>> u, state = tx.update(g, tx.init(g))
    >>> bool(jnp.allclose(u @ u.T, jnp.eye(2), atol=1e-4))
    True
    """

    preconditions = True
    block_size: Static[PositiveInt] = 1024
    beta2: Decay | None = 0.999
    eps: NonNegative = 1e-6
    grafting: Static[Grafting] = "adam"
    preconditioner_every: PositiveInt = 10
    start_preconditioning_step: PositiveInt = 1
    graft_eps: NonNegative = 1e-8
    state_dtype: Static[DType | None] = None
    distributed: Static[Distributed | None] = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        if self.beta2 is None and self.grafting in ("rmsprop", "adam"):
            raise ValueError(
                f"grafting={self.grafting!r} needs beta2, got None; set beta2, or use grafting='adagrad' without it"
            )

    def init(self, params):
        def matrices(x, k, start):
            if not _has_matrices(x):
                return None
            rows = jax.vmap(lambda block: sum_of_slices(block, k))(_into_blocks(x, self.block_size))
            return rows[:, :, None] + start * jnp.eye(rows.shape[1], dtype=rows.dtype)

        nu = zeros_like(params, self.state_dtype, real=True)
        slots = functools.partial(slots_by_axis, params, distributed=self.distributed)
        return ScaleByShampooState(
            zero_count(),
            jax.tree.map(lambda v: v if self._rule(v) not in ("sgd", "none") else absent(v), nu),
            slots(lambda x, k: matrices(x, k, 0)),
            slots(lambda x, k: matrices(x, k, 1)),
        )

    def update(self, updates, state, params=None, **extra):
        if params is not None:
            check_leaves(updates, params)
        axes = len(state.statistics)
        t, beta, g = increment(state.count), self.beta2, widen_tree(updates, "updates")
        start, every = self.start_preconditioning_step, self.preconditioner_every
        new, correction = (1, 1) if beta is None else (1 - beta, 1 - beta**t)

        def mean(g, *matrices_and_grams):
            matrices, grams = (matrices_and_grams[:axes], matrices_and_grams[axes:])
            sums = [
                a
                if a.ndim < 2
                else unless_overflown(((a if beta is None else beta * a) + new * b).astype(a.dtype), a)
                for a, b in zip(matrices, grams, strict=True)
            ]
            return g, *sums

        def grafted(u, g, d):
            if not _has_matrices(u):
                return d
            if self.grafting != "none":
                own = _norm(u)
                u = u * jnp.where(own > 0, _norm(d) / jnp.where(own > 0, own, 1), 0)
            return jnp.where(t >= start, u, d)

        share = functools.partial(map_factors, owners=Owners(self.distributed))
        d, nu = map_leaves(lambda g, v: self._graft(g, v, t), g, state.nu, same_shape=False)
        (grams,) = share(self._grams, (g,), (state.preconditioners,), (1,))
        statistics = map_leaves(mean, g, *state.statistics, read=grams, same_shape=False)[1:] if axes else ()
        roots = jax.lax.cond(
            (t >= start) & ((t - start) % every == 0),
            lambda *x: map_factors(_inverse_roots, (g,), x, (2,), (correction, self.eps), Owners(self.distributed))[
                0
            ],
            lambda _, roots: roots,
            jax.lax.stop_gradient(statistics),
            state.preconditioners,
        )
        (u,) = share(self._multiplied, (g,), (roots,), (0,))
        new_updates = map_leaves(grafted, u, read=(g, d), params=updates if params is None else params)
        kept = keep_placement((statistics, roots), (state.statistics, state.preconditioners))
        return keep_placement(new_updates, updates), ScaleByShampooState(t, nu, *kept)

    def _mean(self, old: jax.Array, gram: jax.Array, weight: Any) -> jax.Array:
        if old.ndim < 2:
            return old
        kept = old if self.beta2 is None else self.beta2 * old
        return unless_overflown((kept + weight * gram).astype(old.dtype), old)

    def _grams(self, g: jax.Array, roots: list) -> tuple[list]:
        if not _has_matrices(g):
            return (roots,)
        blocks = _into_blocks(g, self.block_size)
        return ([jax.vmap(functools.partial(gram, k=k))(blocks) for k in range(g.ndim)],)

    def _multiplied(self, g: jax.Array, roots: list) -> tuple[jax.Array]:
        if not _has_matrices(g):
            return (g,)
        blocks = _into_blocks(g, self.block_size)
        for k, root in enumerate(roots):
            blocks = jax.vmap(functools.partial(multiply_axis, k=k))(root, blocks)
        return (_from_blocks(blocks, g.shape, self.block_size),)

    def _rule(self, x: jax.Array) -> str:
        """Returns the rule that computes d for a leaf."""
        if self.grafting != "none" or _has_matrices(x):
            return self.grafting
        return "adagrad" if self.beta2 is None else "adam"

    def _graft(self, g: Any, v: Any, t: jax.Array) -> tuple[Any, Any]:
        rule, beta = self._rule(g), self.beta2
        if rule in ("sgd", "none"):
            return g, v
        if rule == "adagrad" or beta is None:
            v = v + abs_sq(g)
        else:
            v = beta * v + (1 - beta) * abs_sq(g)
        v_hat = v / (1 - beta**t) if rule == "adam" and beta is not None else v
        root = safe_sqrt(v_hat) + self.graft_eps
        return g / jnp.where(root > 0, root, 1), v


def _has_matrices(x: jax.Array) -> bool:
    return x.ndim > 1 and x.size > 0


def _cut(n: int, block_size: int) -> tuple[int, int]:
    """Returns the number of blocks that an axis is cut into, and their length; zeros pad the last block."""
    number = -(-n // block_size)
    return number, -(-n // number)


def _into_blocks(x: jax.Array, block_size: int) -> jax.Array:
    """Cuts an array of shape (n, m, ...) into blocks: (blocks, n', m', ...)."""
    pieces = [_cut(n, block_size) for n in x.shape]
    x = jnp.pad(x, [(0, number * size - n) for (number, size), n in zip(pieces, x.shape, strict=True)])
    x = x.reshape([n for piece in pieces for n in piece])
    x = x.transpose([*range(0, x.ndim, 2), *range(1, x.ndim, 2)])
    return x.reshape(-1, *(size for _, size in pieces))


def _from_blocks(x: jax.Array, shape: tuple[int, ...], block_size: int) -> jax.Array:
    """Inverts `_into_blocks` for a leaf of that shape."""
    pieces, k = [_cut(n, block_size) for n in shape], len(shape)
    x = x.reshape([number for number, _ in pieces] + [size for _, size in pieces])
    x = x.transpose([axis for i in range(k) for axis in (i, k + i)])
    x = x.reshape([number * size for number, size in pieces])
    return x[tuple(slice(n) for n in shape)]


def _inverse_roots(g: jax.Array, matrices: list, roots: list, correction: Any, eps: Any) -> tuple[list]:
    """Returns the inverse roots of a leaf's matrices, where it has any."""
    if not _has_matrices(g):
        return (roots,)
    return ([_inverse_root(a / correction, 2 * g.ndim, eps).astype(a.dtype) for a in matrices],)


def _inverse_root(a: jax.Array, p: int, eps: Any) -> jax.Array:
    """Returns (A + eps·λ·1)^(−1/p) for a stack of matrices, λ the largest eigenvalue of each; 1 for a zero matrix."""
    values, vectors = jnp.linalg.eigh(a)
    values = jnp.maximum(values, 0)
    ridged = values + eps * values[:, -1:]
    powers = jnp.where(ridged > 0, jnp.where(ridged > 0, ridged, 1) ** (-1 / p), jnp.where(values[:, -1:] > 0, 0, 1))
    return (vectors * powers[:, None, :]) @ vectors.conj().mT


def _norm(x: Any) -> jax.Array:
    return safe_sqrt(jnp.sum(abs_sq(x)))


@checked
def shampoo(
    learning_rate: Rate,
    block_size: PositiveInt = 1024,
    beta2: Decay | None = 0.999,
    eps: NonNegative = 1e-6,
    grafting: Grafting = "adam",
    preconditioner_every: PositiveInt = 10,
    start_preconditioning_step: PositiveInt = 1,
    momentum: Decay | None = 0.9,
    nesterov: bool = False,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    *,
    graft_eps: NonNegative = 1e-8,
    state_dtype: DType | None = None,
    distributed: Distributed | None = None,
) -> chain:
    """Shampoo: m ← momentum·m + u; w ← w − learning_rate · (m + weight_decay · w). See `scale_by_shampoo`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; with grafting, use that of the other rule
            times 1 − momentum.
        momentum, nesterov: as in `trace`, for u; no momentum if None.
        weight_decay, mask: as in `add_decayed_weights`.

    Gupta, Koren & Singer 2018, arXiv:1802.09568; Anil et al. 2020, arXiv:2002.09018.

    >>> shampoo(1e-4, momentum=None)
    chain(scale_by_shampoo(), add_decayed_weights(), scale_by_learning_rate(0.0001))
    """
    rule = scale_by_shampoo(
        *(block_size, beta2, eps, grafting, preconditioner_every, start_preconditioning_step, graft_eps, state_dtype),
        distributed=distributed,
    )
    heavy = () if momentum is None else (trace(momentum, nesterov, state_dtype),)
    return chain(rule, *heavy, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
