"""SPAM: Adam that bounds each gradient by its own second moment and resets its moments; for all elements or some."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import Static, checked
from ..core.leaves import map_leaves, zeros_like
from ..core.norms import abs_sq, safe_sqrt
from ..core.paths import Mask
from ..core.ranges import Count, Decay, DType, NonNegative, PositiveBound, PositiveInt, Range
from ..core.schedule import Rate
from ..core.sharding import replicate, sharded_by_compiler
from ..core.slots import Counter, RandomKey, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..placement.like import keep_placement
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from ..transforms.stochastic.noise import Key, key_data, key_in, path_numbers

Density = Annotated[float, Range("(0, 1]")]


class ScaleBySpamState(NamedTuple):
    """`count`: steps done. `mu`, `nu`: running means of g and |g|² since the last reset, for the chosen elements.

    `rng_key`: the key data (uint32) for the choices; None with density=1.
    """

    count: Counter
    mu: Signed
    nu: Unsigned
    rng_key: RandomKey = None


@transformation
class scale_by_spam(GradientTransformation):
    """SPAM's direction: u = φ · c · m / (√v + eps), with |g| ≤ √(threshold · v) for each element.

    m and v are Adam's means, c = √(1 − b2ᵗ) / (1 − b1ᵗ). At every step t that is a multiple of reset_interval, m and
    v are reset to 0. φ then rises from 0.01 to 1 in a half cosine over warmup_steps; before the first reset,
    φ = 1. The bound uses the v before the step. It applies from settle_steps after the start and after each reset.

    Args:
        b1, b2: decay rates of the two means, in [0, 1).
        eps: added outside the root, ≥ 0.
        threshold: the largest ratio of |g|² to v, θ in the paper, > 0.
        reset_interval: steps from one reset to the next, ΔT in the paper, ≥ 1.
        warmup_steps: N in the paper, ≥ 0.
        settle_steps: number of steps without a bound after the start or a reset, because v is not reliable yet, ≥ 0.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params.
        density: the share of elements that move, d in the paper, in (0, 1]. Of each row of a leaf with two axes or
            more, round(density · columns) elements, at least 1, have an m and a v; the others get the update 0. Each
            reset chooses anew. `groups` can give some leaves, such as embeddings, another density.
        key: a `jax.random` key or an integer seed for the choices; seed 0 if None.

    The choices are not stored but drawn again at every step: of each run of about 1 / density columns in a row one
    element, by the key `fold_in(fold_in(key, number of resets), crc32(path))`, with a path such as
    `['dense']['kernel']`. Then m and v take 8·density bytes per element in float32.

    Huang et al. 2025, arXiv:2501.06842, algorithm 1. settle_steps, and c, which is not reset, follow their code.

    >>> tx, g = scale_by_spam(threshold=4.0, settle_steps=1), jnp.array(1.0)
    >>> _, state = tx.update(g, tx.init(g))
    >>> tx.update(100 * g, state)[1].nu.item() < 0.002  # a spike counts as 2·√v, not as 100
    True

    Half of the elements of a matrix move, and have slots:

    >>> tx, g = scale_by_spam(density=0.5), jnp.ones((2, 4))
    >>> u, state = tx.update(g, tx.init(g))
    >>> jnp.count_nonzero(u, axis=1).tolist(), state.mu.shape
    ([2, 2], (2, 2))

    Differs from their code: where v is 0, g is not bounded. In their code such an element never moves again. There
    the choice is random over the entire matrix, and after the first reset the number of elements is, too.
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-6
    threshold: PositiveBound = 5000.0
    reset_interval: PositiveInt = 500
    warmup_steps: Count = 150
    settle_steps: Count = 20
    state_dtype: Static[DType | None] = None
    density: Static[Density] = 1.0
    key: Key = None

    def init(self, params):
        mu, nu = zeros_like(params, self.state_dtype), zeros_like(params, self.state_dtype, real=True)
        mu, nu = (jax.tree.map(self._of_chosen, slot) for slot in (mu, nu))
        return ScaleBySpamState(zero_count(), mu, nu, None if self.density == 1 else key_data(self.key))

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2
        since = t % self.reset_interval
        rising = (t >= self.reset_interval) & (since < self.warmup_steps)
        phi = 1 - 0.495 * (1 + jnp.cos(jnp.pi * since / (self.warmup_steps + 1)))
        c = jnp.where(rising, phi, 1.0) * jnp.sqrt(1 - b2**t) / (1 - b1**t)

        def rule(g, m, v):
            m, v = (jnp.where(since == 0, 0, x) for x in (m, v))
            bound = v * self.threshold
            spike = (since >= self.settle_steps) & (bound > 0) & (abs_sq(g) > bound)
            g = jnp.where(spike, jnp.sign(g) * safe_sqrt(bound), g)
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * abs_sq(g)
            return c * m / (jnp.sqrt(v) + self.eps), m, v

        if self.density == 1:
            updates, mu, nu = map_leaves(rule, updates, state.mu, state.nu, params=params)
            return updates, ScaleBySpamState(t, mu, nu, state.rng_key)
        resets = jnp.asarray(t // self.reset_interval, jnp.uint32)
        key = jax.random.fold_in(key_in(state.rng_key, self.key), resets)

        def leaf(g, m, v, name):
            if self._count(g.shape) is None:
                return rule(g, m, v)
            chosen = _choose(jax.random.fold_in(key, name), m.shape, g.shape[-1])
            some, m, v = rule(sharded_by_compiler(_take, m, replicate(g, g.ndim - 1), chosen), m, v)
            return sharded_by_compiler(_put, g, some, chosen), m, v

        updates, mu, nu = map_leaves(
            leaf, updates, state.mu, state.nu, read=(path_numbers(updates),), params=params, same_shape=False
        )
        mu, nu = keep_placement((mu, nu), (state.mu, state.nu))
        return updates, ScaleBySpamState(t, mu, nu, state.rng_key)

    def _count(self, shape: tuple[int, ...]) -> int | None:
        """Returns how many elements of each row are chosen; None for a leaf that is chosen entirely."""
        if len(shape) < 2:
            return None
        n = max(round(self.density * shape[-1]), 1)
        return n if n < shape[-1] else None

    def _of_chosen(self, x: jax.Array) -> jax.Array:
        """Returns zeros for the chosen elements, sharded like the rows of x, which is zeros; or x itself."""
        n = self._count(x.shape)
        return x if n is None else jnp.sum(x, -1, keepdims=True) + jnp.zeros(n, x.dtype)


def _choose(key: jax.Array, shape: tuple[int, ...], columns: int) -> jax.Array:
    """Returns the columns of the chosen elements of each row, one of each of as many runs as are to be chosen."""
    ends = np.arange(shape[-1] + 1) * columns // shape[-1]
    return jax.random.randint(key, shape, ends[:-1], ends[1:], jnp.int32)


def _take(_: jax.Array, x: jax.Array, chosen: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, chosen, -1)


def _put(like: jax.Array, some: jax.Array, chosen: jax.Array) -> jax.Array:
    """Returns an array with `some` at the chosen elements and 0 elsewhere."""
    columns, n = like.shape[-1], some.shape[-1]
    run = np.searchsorted(np.arange(1, n + 1) * columns // n, np.arange(columns), side="right")
    return jnp.where(chosen[..., run] == np.arange(columns), some[..., run], 0)


@checked
def spam(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    *,
    threshold: PositiveBound = 5000.0,
    reset_interval: PositiveInt = 500,
    warmup_steps: Count = 150,
    settle_steps: Count = 20,
    state_dtype: DType | None = None,
    density: Static[Density] = 1.0,
    key: Key = None,
) -> chain:
    """SPAM: w ← w − learning_rate · (φ·c·m / (√v + eps) + weight_decay · w). See `scale_by_spam`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 1e-3 is the authors'.
        weight_decay, mask: as in `add_decayed_weights`; all elements decay, whatever the density.

    Huang et al. 2025, arXiv:2501.06842.

    >>> spam(1e-3, reset_interval=1000)
    chain(scale_by_spam(reset_interval=1000), add_decayed_weights(), scale_by_learning_rate(0.001))
    """
    rule = scale_by_spam(
        b1, b2, eps, threshold, reset_interval, warmup_steps, settle_steps, state_dtype, density, key
    )
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
