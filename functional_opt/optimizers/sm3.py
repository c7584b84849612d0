"""SM3: Adagrad that keeps one number per index of each axis, not one per weight."""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import map_leaves, zeros_like
from ..core.norms import abs_sq
from ..core.ranges import Decay, DType, Fraction, NonNegative
from ..core.schedule import Rate
from ..core.slots import Signed, Unsigned
from ..core.transformation import GradientTransformation, transformation
from ..transforms.combining.chain import chain
from ..transforms.matrices.kronecker import slots_by_axis, sum_of_slices
from ..transforms.scaling.learning_rate import scale_by_learning_rate


class ScaleBySM3State(NamedTuple):
    """`mu[k]`: for every leaf, an array as long as its axis k. `nu`: running mean of the direction.

    `mu[0]` has shape (1,) for a scalar. `mu[k]` is a single zero for a leaf without an axis k.
    """

    mu: Unsigned
    nu: Signed


@transformation
class scale_by_sm3(GradientTransformation):
    """SM3-II's direction: u = m ← b1·m + (1 − b1)·g / √(v + eps), with 0 for g / √(v + eps) where v is 0.

    v = b2·min over the axes of a + (1 − b2)·|g|², with 1 in place of 1 − b2 if b2 is 1. Then a of every axis is the
    maximum of v over the other axes. A bias is treated as in Adagrad; an n × k matrix needs n + k numbers.

    Args:
        b1: decay rate of the direction's mean, in [0, 1).
        b2: decay rate of the squares, in [0, 1]; 1 sums them, as in Adagrad and the paper.
        eps: added inside the root, ≥ 0.
        state_dtype: storage dtype of a and m. None means the params' dtype, or float32 for 16-bit params.

    Anil et al. 2019, arXiv:1901.11150.

    >>> tx, g = scale_by_sm3(b1=0.0), jnp.array([[3.0, 0.0], [0.0, 4.0]])
    >>> u, state = tx.update(g, tx.init(g))
    >>> u.round(3).tolist(), [a.tolist() for a in state.mu]
    ([[1.0, 0.0], [0.0, 1.0]], [[9.0, 16.0], [9.0, 16.0]])

    Differs from Optax: scalars are accepted, and `mu` is a tuple of trees of arrays, not a tree of lists.
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Fraction = 1.0
    eps: NonNegative = 1e-8
    state_dtype: Static[DType | None] = None

    def init(self, params):
        mu = slots_by_axis(params, sum_of_slices, sharded=True)
        return ScaleBySM3State(zeros_like(mu, self.state_dtype, real=True), zeros_like(params, self.state_dtype))

    def update(self, updates, state, params=None, **extra):
        b2, new = self.b2, jnp.where(self.b2 == 1, 1.0, 1 - self.b2)

        def leaf(g, m, *slots):
            n = g.ndim or 1  # the slots beyond belong to leaves with more axes
            spread = [a.reshape([-1 if i == axis else 1 for i in range(g.ndim)]) for axis, a in enumerate(slots[:n])]
            v = b2 * functools.reduce(jnp.minimum, spread) + new * abs_sq(g)
            positive = v > 0
            u = jnp.where(positive, g / jnp.sqrt(jnp.where(positive, v, 1.0) + self.eps), 0.0)
            m = self.b1 * m + (1 - self.b1) * u
            v = v.reshape(v.shape or (1,))
            largest = [jnp.max(v, [a for a in range(v.ndim) if a != axis], initial=0) for axis in range(n)]
            return m, m, *largest, *slots[n:]

        updates, nu, *mu = map_leaves(leaf, updates, state.nu, *state.mu, params=params, same_shape=False)
        return updates, ScaleBySM3State(tuple(mu), nu)


@checked
def sm3(learning_rate: Rate, momentum: Decay = 0.9, *, state_dtype: DType | None = None) -> chain:
    """SM3: w ← w − learning_rate · m, m the mean of Adagrad-like steps, with little memory. See `scale_by_sm3`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.
        momentum: b1 of `scale_by_sm3`.

    Anil et al. 2019, arXiv:1901.11150.

    >>> sm3(0.1)
    chain(scale_by_sm3(), scale_by_learning_rate(0.1))
    """
    return chain(scale_by_sm3(momentum, state_dtype=state_dtype), scale_by_learning_rate(learning_rate))
