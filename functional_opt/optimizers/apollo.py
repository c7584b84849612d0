"""APOLLO: SGD with Adam's scaling, estimated from a random projection to a few dimensions."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import map_leaves, zeros_like
from ..core.norms import abs_sq, global_norm, safe_sqrt
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative, PositiveBound, PositiveInt, Real
from ..core.schedule import Rate
from ..core.sharding import replicate
from ..core.slots import Counter, Number, RandomKey, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from ..transforms.stochastic.noise import Key, key_data, key_in, path_numbers


class ScaleByApolloState(NamedTuple):
    """`count`: steps done. `mu`, `nu`: running means of r and |r|². `norm`: that of a matrix's last s·g, initially 0.

    `rng_key`: the key data (uint32) for the projections.
    """

    count: Counter
    mu: Signed
    nu: Unsigned
    norm: Number
    rng_key: RandomKey


@transformation
class scale_by_apollo(GradientTransformation):
    """APOLLO's direction: u = c · scale · s·g for matrices, s being Adam's scaling of the projected gradient r = P·g.

    P has normal entries of variance 1/rank and acts on the shorter side of the matrix. s = ‖a‖ / ‖r‖, for each
    channel (an index of the longer side) or for the entire matrix, where a = m / (√v + eps), m and v the running
    means of r and |r|². If ‖s·g‖ exceeds max_norm_growth times that of the previous step, s·g is scaled down to this
    limit. c = √(1 − b2ᵗ) / (1 − b1ᵗ) corrects the bias of both means. Leaves that are not matrices get Adam's
    direction, c · m / (√v + eps).

    P is not stored but drawn again at every step: the k-th P of a leaf from `fold_in(fold_in(key, k), crc32(path))`,
    with a path such as `['dense']['kernel']`. k increases every update_proj_gap steps.

    Args:
        rank: number of rows of P, ≥ 1, at most the shorter side. The state has two arrays of rank × the longer side.
        update_proj_gap: number of steps for which P stays the same, ≥ 1.
        scale: α, a factor on the updates of the matrices. With a small rank, √(shorter side / rank) makes up for what
            P loses.
        b1, b2: decay rates of the two means, in [0, 1).
        eps: added outside the root of v, which has no bias correction there, ≥ 0.
        scaling: "channel" for one s per channel, "tensor" for one per matrix.
        max_norm_growth: γ, > 0; None for no limit.
        key: a `jax.random` key or an integer seed; seed 0 if None.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params.

    Zhu et al. 2024, arXiv:2412.05270, algorithm 1; γ comes from its section on norm growth.

    >>> tx, g = scale_by_apollo(rank=1), jnp.array([[3.0, 1.0], [4.0, 1.0]])
    >>> u, state = tx.update(g, tx.init(g))
    >>> (u / g).std(axis=0).round(3).tolist(), state.mu.shape  # each column is scaled
    ([0.0, 0.0], (1, 2))

    As in the authors' code (apollo-torch), c is applied after the limit, so that the first updates are small where
    the first gradients agree. Differs from that code: its `scale` is the square of this one, and there a gradient of
    zero keeps the following updates near zero. Here it does not.
    """

    preconditions = True
    rank: Static[PositiveInt] = 256
    update_proj_gap: PositiveInt = 200
    scale: Real = 1.0
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-6
    scaling: Static[Literal["channel", "tensor"]] = "channel"
    max_norm_growth: PositiveBound | None = 1.01
    key: Key = None
    state_dtype: Static[DType | None] = None

    def init(self, params):
        mu, nu = zeros_like(params, self.state_dtype), zeros_like(params, self.state_dtype, real=True)
        mu, nu = (jax.tree.map(self._low_rank, slot) for slot in (mu, nu))
        scalars = jax.tree.map(lambda x: jax.ShapeDtypeStruct((), jnp.result_type(x)), params)
        key = key_data(self.key)
        return ScaleByApolloState(zero_count(), mu, nu, zeros_like(scalars, real=True), key)

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2
        c = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        key = key_in(state.rng_key, self.key)
        key = jax.random.fold_in(key, jnp.asarray(state.count // self.update_proj_gap, jnp.uint32))

        def adam(r, m, v):
            m = b1 * m + (1 - b1) * r
            v = b2 * v + (1 - b2) * abs_sq(r)
            return m / (jnp.sqrt(v) + self.eps), m, v

        def leaf(g, m, v, before, name):
            if g.ndim != 2:
                a, m, v = adam(g, m, v)
                return c * a, m, v, before
            r = self._project(g, jax.random.fold_in(key, name))
            a, m, v = adam(r, m, v)
            axis = _shorter(g) if self.scaling == "channel" else (0, 1)
            length = _norms(r, axis)
            u = _norms(a, axis) / jnp.where(length == 0, 1.0, length) * g
            norm = global_norm(u)
            if self.max_norm_growth is not None:
                limit = self.max_norm_growth * before
                cut = jnp.where((before > 0) & (norm > limit), limit / jnp.where(norm == 0, 1.0, norm), 1.0)
                u, norm = cut * u, cut * norm
            return c * self.scale * u, m, v, norm

        slots = state.mu, state.nu, state.norm
        updates, mu, nu, norm = map_leaves(
            leaf, updates, *slots, read=(path_numbers(updates),), params=params, same_shape=False
        )
        return updates, ScaleByApolloState(t, mu, nu, norm, state.rng_key)

    def _low_rank(self, x: jax.Array) -> jax.Array:
        """Returns zeros of the shape of r, sharded like its channels; x itself if it is not a matrix."""
        if x.ndim != 2:
            return x
        axis = _shorter(x)
        few = jnp.zeros(min(self.rank, x.shape[axis]), x.dtype)
        return jnp.sum(x, axis, keepdims=True) + jnp.expand_dims(few, 1 - axis)

    def _project(self, g: jax.Array, key: jax.Array) -> jax.Array:
        axis = _shorter(g)
        rank = min(self.rank, g.shape[axis])
        p = jax.random.normal(key, (rank, g.shape[axis]), jnp.float32).astype(g.dtype) / math.sqrt(rank)
        g = replicate(g, axis)
        return p @ g if axis == 0 else g @ p.T


def _shorter(x: jax.Array) -> int:
    return 0 if x.shape[0] <= x.shape[1] else 1


def _norms(x: jax.Array, axis: Any) -> jax.Array:
    return safe_sqrt(jnp.sum(abs_sq(x), axis, keepdims=True))


@checked
def apollo(
    learning_rate: Rate,
    rank: PositiveInt = 256,
    update_proj_gap: PositiveInt = 200,
    scale: Real = 1.0,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    *,
    max_norm_growth: PositiveBound | None = 1.01,
    key: Key = None,
    state_dtype: DType | None = None,
) -> chain:
    """APOLLO: w ← w − learning_rate · (c·scale·s·g + weight_decay·w), with one s per channel. See `scale_by_apollo`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 1e-2 is usual.
        weight_decay, mask: as in `add_decayed_weights`.

    Zhu et al. 2024, arXiv:2412.05270.

    >>> apollo(0.01, rank=4)
    chain(scale_by_apollo(rank=4), add_decayed_weights(), scale_by_learning_rate(0.01))
    """
    rule = scale_by_apollo(rank, update_proj_gap, scale, b1, b2, eps, "channel", max_norm_growth, key, state_dtype)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))


@checked
def apollo_mini(
    learning_rate: Rate,
    update_proj_gap: PositiveInt = 200,
    scale: Real = 128**0.5,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    *,
    max_norm_growth: PositiveBound | None = 1.01,
    key: Key = None,
    state_dtype: DType | None = None,
) -> chain:
    """APOLLO-Mini: APOLLO with rank 1 and one s per matrix, so that a matrix's state is two vectors.

    The arguments are those of `apollo`. The default scale is √128, as in the paper (the authors' code has scale=128).

    Zhu et al. 2024, arXiv:2412.05270.

    >>> apollo_mini(0.01, scale=8.0)
    chain(scale_by_apollo(rank=1, scale=8.0, scaling='tensor'), add_decayed_weights(), scale_by_learning_rate(0.01))
    """
    rule = scale_by_apollo(1, update_proj_gap, scale, b1, b2, eps, "tensor", max_norm_growth, key, state_dtype)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
