"""LoRA-RITE: an optimizer for the two factors of a low-rank update, which only their product affects."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import Static, checked
from ..core.leaves import as_updates, map_leaves, widen_tree, zeros_like, zip_leaves
from ..core.norms import abs_sq, global_norm, nonzero, safe_sqrt
from ..core.paths import AllParams, Mask
from ..core.ranges import Decay, DType, NonNegative, PositiveBound
from ..core.schedule import Rate
from ..core.slots import Counter, Exact, Exact16, Number, Signed
from ..core.transformation import GradientTransformation, increment, needs_params, transformation, zero_count
from ..placement.like import keep_placement
from ..transforms.combining.chain import chain
from ..transforms.matrices.factors import USUAL, Factors, Pairs
from ..transforms.matrices.kronecker import unless_overflown
from ..transforms.matrices.routing import Layout
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate


class ScaleByLoraRiteState(NamedTuple):
    """`count`: steps done. `mu`, `nu`: M and V. `basis`: Q, in the shape of the partner. `escaped`: ρ."""

    count: Counter
    mu: Signed
    nu: Exact
    basis: Exact16
    escaped: Number


@transformation
class scale_by_lora_rite(GradientTransformation):
    """LoRA-RITE's direction for pairs of factors A (m, r) and B (r, n): that of A is u = M·R⁻ᴴ, with Bᴴ = Q·R.

    Where G is the gradient of A and Q·R the QR decomposition of Bᴴ, G·R⁻¹ does not depend on how the product A·B is
    split into its factors. Let P = Qᴴ·Q' turn the basis Q' of the last step into the new one. Then

        G ← G·R⁻¹,  V ← b2·P·V·Pᴴ + (1 − b2)·Gᴴ·G / m,  M ← b1·M·Pᴴ + (1 − b1)·G·(V + ρ·I)^(−1/2).

    b1 and b2 are bias-corrected as in Adafactor: b·(1 − bᵗ⁻¹) / (1 − bᵗ). The direction of B is the same rule for Bᴴ,
    with A in the place of Bᴴ. If one factor is 0, the other does not move. Both update the product A·B as if they had
    been any other pair of factors of it: u·B and A·u do not change if A·T, T⁻¹·B take the place of A, B.

    Args:
        b1, b2: decay rates of the means, in [0, 1).
        eps: added to the root of V + ρ·I, ≥ 0.
        clip_norm: the largest norm of all G·R⁻¹ together, > 0; infinity for no limit.
        skip_rms: a G·R⁻¹ whose root mean square is larger counts as 0, > 0; the authors' code has 1.0. A model whose
            gradients are always larger would never move, so that the default, infinity, skips none.
        escape: whether ρ makes up for the part of V that P loses, which the theory in the paper needs. Then
            ρ ← b2·(ρ + min(the largest decrease of an eigenvalue of V, that of its trace)). Otherwise ρ = 0.
        pairs: a dict from the pattern of A to the pattern of B. A `*` stands for a part of a name, the same in both;
            a pattern matches one or several names anywhere in a path. The default finds `up/lora_a` and `up/lora_b`,
            `kernel_lora_a` and `kernel_lora_b`, `lora_A/weight` and `lora_B/weight`.
        matrix_layout: "in_out" if the product is A·B, A being (..., r) and B (r, ...), as in Flax; "out_in" if it is
            B·A, A being (r, ...) and B (..., r), as in PyTorch. If None, the layout whose r is smaller. Leading axes
            that both have are stacks of pairs.
        state_dtype: storage dtype of M and Q. None means the params' dtype, or float32 for 16-bit params.

    Raises ValueError, naming the leaf, for one that is in no pair, has no partner, or whose shape does not fit that
    of its partner. Freeze such leaves with `groups`, or give them another optimizer with `partition`.

    Yen, Si, Meng, Yu, Duvvuri, Dhillon, Hsieh & Kumar 2024, arXiv:2410.20625, algorithm 1; clip_norm, skip_rms, eps,
    and the default escape=False come from the authors' code. No derivative is taken through Q and R.

    >>> tx, params = scale_by_lora_rite(), {"lora_a": jnp.array([[1.0], [1.0]]), "lora_b": jnp.array([[10.0, 0.0]])}
    >>> grads = {"lora_a": jnp.array([[2.0], [0.0]]), "lora_b": jnp.array([[0.2, 0.0]])}  # of 0.2·(A·B)[0, 0]
    >>> u, _ = tx.update(grads, tx.init(params), params)
    >>> moves = u["lora_a"] @ params["lora_b"], params["lora_a"] @ u["lora_b"]  # A·B by either factor
    >>> [round(float(jnp.linalg.norm(move)), 3) for move in moves]
    [1.414, 1.414]

    Gradients whose rank stays below r leave directions in V that only rounding errors fill. u of one factor may then
    differ between compilations there, which hardly moves A·B.

    Differs from the authors' code: a gradient so large that Gᴴ·G overflows leaves V as it is, and a factor may have a
    side shorter than r.
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-6
    clip_norm: PositiveBound = 1.0
    skip_rms: PositiveBound = np.inf
    escape: Static[bool] = False
    pairs: Static[Pairs] = USUAL
    matrix_layout: Static[Layout | None] = None
    state_dtype: Static[DType | None] = None

    def init(self, params):
        mu = zeros_like(params, self.state_dtype)
        if isinstance(params, AllParams):
            return ScaleByLoraRiteState(zero_count(), mu, mu, mu, mu)
        both = Factors(self.pairs, self.matrix_layout, params)
        wide = both.matrices(zeros_like(params))
        nu = jax.tree.map(lambda x: jnp.zeros((*x.shape[:-2], x.shape[-1], x.shape[-1]), x.dtype), wide)
        escaped = jax.tree.map(lambda x: jnp.zeros(x.shape[:-2], x.real.dtype), nu)
        basis = both.partners(zeros_like(params, self.state_dtype))
        return ScaleByLoraRiteState(zero_count(), mu, nu, basis, escaped)

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        zip_leaves((updates, params), ("updates", "params"))
        t = increment(state.count)
        b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (self.b1, self.b2))
        both = Factors(self.pairs, self.matrix_layout, params)
        others = jax.lax.stop_gradient(both.matrices(widen_tree(both.partners(params), "params"), of_partners=True))

        def unmagnified(g, q, _):
            q, inverse = _basis(q)
            g = g @ inverse
            rms = safe_sqrt(jnp.mean(abs_sq(g), (-2, -1), keepdims=True))
            return jnp.where(rms > self.skip_rms, 0, g), q, inverse

        def leaf(g, m, v, old, lost, q, inverse):
            p = q.mT.conj() @ old
            turned = _hermitian(p @ v @ p.mT.conj())
            if self.escape:
                lost = b2 * (lost + _decrease(v, turned))
            new = b2 * turned + (1 - b2) * _hermitian(g.mT.conj() @ g) / max(g.shape[-2], 1)
            v = unless_overflown(new, turned)
            direction = g @ inverse_root(v + lost[..., None, None] * jnp.eye(v.shape[-1], dtype=v.dtype), self.eps)
            m = b1 * m @ p.mT.conj() + (1 - b1) * direction
            return m @ inverse.mT.conj(), m, v, q, lost

        g = both.matrices(widen_tree(updates, "updates"))
        g, q, inverse = map_leaves(unmagnified, g, others, others, same_shape=False)
        norm = global_norm(g)
        shrink = jnp.where(norm > self.clip_norm, self.clip_norm / nonzero(norm), 1.0)
        g = jax.tree.map(lambda x: shrink.astype(x.real.dtype) * x, g)
        m, old = both.matrices(state.mu), both.matrices(state.basis, of_partners=True)
        slots = m, state.nu, old, state.escaped
        u, mu, nu, basis, escaped = map_leaves(leaf, g, *slots, read=(q, inverse), same_shape=False)
        new = as_updates(both.back(u, updates), updates, params)
        mu = both.back(mu, state.mu)
        basis = both.back(basis, state.basis, of_partners=True)
        state = keep_placement(ScaleByLoraRiteState(t, mu, nu, basis, escaped), state)
        return keep_placement(new, updates), state


def _basis(b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns Q and the pseudoinverse of R of matrices (..., n, r); if n < r, the last columns of Q are 0."""
    q, r = jnp.linalg.qr(b)
    missing = [(0, 0)] * (b.ndim - 1) + [(0, r.shape[-1] - q.shape[-1])]
    r = jnp.pad(r, [*missing[:-2], missing[-1], (0, 0)])
    return jnp.pad(q, missing), jnp.linalg.pinv(r)


@jax.custom_jvp
def inverse_root(v: jax.Array, eps: Any) -> jax.Array:
    """Returns (√V + eps·I)⁻¹ of Hermitian matrices (..., r, r); negative eigenvalues count as 0.

    Its derivative is finite, even where eigenvalues are equal.

    >>> inverse_root(jnp.diag(jnp.array([4.0, 1.0])), 0.0).tolist()
    [[0.5, 0.0], [0.0, 1.0]]
    """
    values, vectors = jnp.linalg.eigh(v)
    return _with_eigenvalues(vectors, _inverse(safe_sqrt(jnp.maximum(values, 0)) + eps))


@inverse_root.defjvp
def _derivative(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (v, eps), (dv, deps) = primals, tangents
    values, vectors = jnp.linalg.eigh(v)
    roots = safe_sqrt(jnp.maximum(values, 0))
    f = _inverse(roots + eps)
    slopes = -_inverse(roots[..., None] + roots[..., None, :]) * f[..., None] * f[..., None, :]
    turned = vectors.mT.conj() @ dv @ vectors
    along = vectors @ (slopes * turned) @ vectors.mT.conj()
    return _with_eigenvalues(vectors, f), along + _with_eigenvalues(vectors, -f * f * deps)


def _with_eigenvalues(vectors: jax.Array, values: jax.Array) -> jax.Array:
    return _hermitian((vectors * values[..., None, :].astype(vectors.dtype)) @ vectors.mT.conj())


def _inverse(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 0.0, 1 / nonzero(x))


def _hermitian(x: jax.Array) -> jax.Array:
    return (x + x.mT.conj()) / 2


def _decrease(old: jax.Array, new: jax.Array) -> jax.Array:
    """Returns the largest decrease of an eigenvalue or, if that is smaller, of the trace; at least 0."""
    old, new = jax.lax.stop_gradient((old, new))
    largest = jnp.max(jnp.linalg.eigvalsh(old) - jnp.linalg.eigvalsh(new), -1, initial=-np.inf)
    traces = (jnp.trace(x, axis1=-2, axis2=-1).real for x in (old, new))
    return jnp.maximum(jnp.minimum(largest, next(traces) - next(traces)), 0)


@checked
def lora_rite(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    *,
    clip_norm: PositiveBound = 1.0,
    skip_rms: PositiveBound = np.inf,
    escape: bool = False,
    pairs: Static[Pairs] = USUAL,
    matrix_layout: Layout | None = None,
    state_dtype: DType | None = None,
) -> chain:
    """LoRA-RITE for pairs of factors A, B of low rank: w ← w − learning_rate · (u + weight_decay · w).

    See `scale_by_lora_rite` for u and for the other arguments. The rest of the model is usually frozen:
    `groups(lora_rite(1e-3), {"*lora_*": {}, "**": "frozen"})`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.
        weight_decay, mask: as in `add_decayed_weights`.

    Yen et al. 2024, arXiv:2410.20625.

    >>> lora_rite(1e-3, pairs={"down": "up"})
    chain(scale_by_lora_rite(pairs=(('down', 'up'),)), add_decayed_weights(), scale_by_learning_rate(0.001))
    """
    rule = scale_by_lora_rite(b1, b2, eps, clip_norm, skip_rms, escape, pairs, matrix_layout, state_dtype)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
