"""Adam-mini: Adam with one second moment per block of a leaf."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import is_nothing, map_leaves, paths, zeros_like
from ..core.norms import abs_sq
from ..core.paths import Mask, PathRules
from ..core.ranges import Convert, Decay, DType, NonNegative
from ..core.schedule import Rate
from ..core.sharding import replicate
from ..core.slots import Counter, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate


def _rules(name: str, x: Any) -> PathRules | None:
    if x is None:
        return None
    if not isinstance(x, dict | PathRules):
        raise TypeError(f"{name} must be a dict from path patterns to numbers of blocks, got {x!r}")
    rules = {}
    for pattern, counts in x.rules if isinstance(x, PathRules) else x.items():
        counts = tuple(counts) if isinstance(counts, tuple | list) else (None,)
        if not all(isinstance(n, int) and (n == -1 or n > 0) for n in counts):
            raise TypeError(f"{name}[{pattern!r}] must hold a number ≥ 1, or -1, for each axis, got {x!r}")
        rules[pattern] = counts
    return PathRules(rules)


Blocks = Annotated[Any, Convert(_rules, "{pattern: numbers of blocks}")]
"""Path rules that give the number of blocks along each axis; −1 means one block per index."""

BY_SHAPE = "by shape"


class ScaleByAdamMiniState(NamedTuple):
    """`count`: steps done. `mu`: running mean of g. `nu`: running mean of each block's mean |g|²."""

    count: Counter
    mu: Signed
    nu: Unsigned


@transformation
class scale_by_adam_mini(GradientTransformation):
    """Adam-mini's direction: u = m̂ / (√v̂ + eps), with one v per block of a leaf.

    m ← b1·m + (1 − b1)·g, m̂ = m / (1 − b1ᵗ); v ← b2·v + (1 − b2)·mean(|g|²), v̂ = v / (1 − b2ᵗ). By default a leaf
    with two or more axes has one block per index of the last axis, which is an output of the layer. A leaf with fewer
    axes is one block.

    Args:
        b1, b2: decay rates of the two means, in [0, 1).
        eps: added outside the root, ≥ 0.
        block: path rules for other blocks. They give the number of blocks along each axis, −1 for one per index. The
            paper uses `{"*/embedding": (-1, 1)}`, one block for each token of a table (tokens, features), and, for
            queries and keys, `{"*/query/kernel": (1, 12, 1)}` or `(1, 12)`, one block for each of 12 heads.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params.

    Raises TypeError for a rule of another kind. Raises ValueError, naming the leaf, if a leaf does not divide into
    the blocks, and if a rule matches no leaf.

    Zhang et al. 2024, arXiv:2406.16793, algorithm 1.

    >>> tx, g = scale_by_adam_mini(), jnp.array([[1.0, 1.0], [7.0, 1.0]])
    >>> u, state = tx.update(g, tx.init(g))
    >>> (5 * u).round(2).tolist(), state.nu.shape
    ([[1.0, 5.0], [7.0, 5.0]], (1, 2))
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    block: Static[Blocks | None] = None
    state_dtype: Static[DType | None] = None

    def init(self, params):
        mu, nu = zeros_like(params, self.state_dtype), zeros_like(params, self.state_dtype, real=True)
        leaves, treedef = jax.tree.flatten(nu, is_leaf=is_nothing)
        rules = [BY_SHAPE] * len(leaves)
        if self.block is not None:
            rules = treedef.flatten_up_to(self.block.resolve(params, default=BY_SHAPE))
        rows = zip(leaves, rules, paths(params, is_nothing), strict=True)
        nu = [x if is_nothing(x) else _block_means(x, _counts(rule, x.shape, path)) for x, rule, path in rows]
        return ScaleByAdamMiniState(zero_count(), mu, treedef.unflatten(nu))

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        b1, b2 = self.b1, self.b2

        def leaf(g, m, v):
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * _block_means(abs_sq(g), v.shape)
            root = jnp.sqrt(v / (1 - b2**t)) + self.eps
            return m / (1 - b1**t) / _at_each(root, g.shape), m, v

        updates, mu, nu = map_leaves(leaf, updates, state.mu, state.nu, params=params, same_shape=False)
        return updates, ScaleByAdamMiniState(t, mu, nu)


def _counts(rule: Any, shape: tuple[int, ...], path: str) -> tuple[int, ...]:
    """Returns the number of blocks along each axis, which is the shape of v."""
    if rule == BY_SHAPE:
        rule = (*[1] * (len(shape) - 1), -1) if len(shape) > 1 else (1,) * len(shape)
    if len(rule) != len(shape) or any(size % n for size, n in zip(shape, rule, strict=True)):
        raise ValueError(
            f"params{path} has shape {shape}, which the block counts {rule} do not divide: give each axis -1 or a "
            "divisor of its length"
        )
    return tuple(size if n == -1 else n for size, n in zip(shape, rule, strict=True))


def _block_means(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns the mean of each block; `shape` is the number of blocks along each axis."""
    for axis, (size, n) in enumerate(zip(x.shape, shape, strict=True)):
        if n == 1:
            x = jnp.sum(x, axis, keepdims=True) / max(size, 1)
        elif n < size:
            x = replicate(x, axis).reshape(*x.shape[:axis], n, size // n, *x.shape[axis + 1 :])
            x = jnp.sum(x, axis + 1) / (size // n)
    return x


def _at_each(v: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeats the values of the blocks so that v broadcasts to `shape`."""
    for axis, (size, n) in enumerate(zip(shape, v.shape, strict=True)):
        v = jnp.repeat(v, size // n, axis) if 1 < n < size else v
    return v


@checked
def adam_mini(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    block: Blocks | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """Adam-mini: w ← w − learning_rate · (m̂ / (√v̂ + eps) + weight_decay · w). See `scale_by_adam_mini`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; AdamW's is suitable.
        weight_decay, mask: as in `add_decayed_weights`.

    Zhang et al. 2024, arXiv:2406.16793.

    >>> adam_mini(1e-3, block={"*/embedding": (-1, 1)})
    chain(scale_by_adam_mini(block=PathRules({'*/embedding': (-1, 1)})), add_decayed_weights(), \
scale_by_learning_rate(0.001))
    """
    rule = scale_by_adam_mini(b1, b2, eps, block, state_dtype)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
