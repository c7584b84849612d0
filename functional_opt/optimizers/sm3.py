"""SM3: Adagrad that keeps one number for each index of an axis, not for each weight."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..base import GradientTransformation, transformation
from ..leaves import abs_sq, is_nothing, map_leaves, zeros_like, zip_leaves
from ..schedules import Rate
from ..slots import Signed, Unsigned
from ..transforms.chain import chain
from ..transforms.learning_rate import scale_by_learning_rate
from ..value import Decay, DType, Fraction, NonNegative, Static, checked


class ScaleBySM3State(NamedTuple):
    """`mu`: for each param a list with one array for each axis, as long as it. `nu`: running mean of the direction.

    A scalar has a list with one number.
    """

    mu: Unsigned
    nu: Signed


@transformation
class scale_by_sm3(GradientTransformation):
    """SM3-II's direction: u = m ← b1·m + (1 − b1)·g / √(v + eps), with 0 for g / √(v + eps) where v is 0.

    v = b2·min over the axes of a + (1 − b2)·|g|², with 1 in place of 1 − b2 where b2 is 1; then a of every axis
    is the maximum of v over the other axes. A bias is as with Adagrad; an n × k matrix has n + k numbers.

    Args:
        b1: decay of the direction's mean, in [0, 1).
        b2: decay of the squares, in [0, 1]; 1 sums them, as Adagrad does and the paper has it.
        eps: added inside the root, ≥ 0.
        state_dtype: how a and m are stored; the params' dtype, float32 for 16-bit params, if None.

    Anil et al. 2019, arXiv:1901.11150.

    >>> tx, g = scale_by_sm3(b1=0.0), jnp.array([[3.0, 0.0], [0.0, 4.0]])
    >>> u, state = tx.update(g, tx.init(g))
    >>> u.round(3).tolist(), [a.tolist() for a in state.mu]
    ([[1.0, 0.0], [0.0, 1.0]], [[9.0, 16.0], [9.0, 16.0]])

    Differs from Optax: scalars are taken.
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Fraction = 1.0
    eps: NonNegative = 1e-8
    state_dtype: Static[DType | None] = None

    def init(self, params):
        def axes(p):
            def along(axis, p):
                return jnp.mean(p, [a for a in range(p.ndim) if a != axis])

            each = [functools.partial(along, axis) for axis in range(jnp.ndim(p) or 1)]
            return [jax.eval_shape(f, p) if isinstance(p, jax.ShapeDtypeStruct) else f(jnp.asarray(p)) for f in each]

        return ScaleBySM3State(
            zeros_like(jax.tree.map(axes, params), self.state_dtype, real=True), zeros_like(params, self.state_dtype)
        )

    def update(self, updates, state, params=None, **extra):
        treedef, _ = zip_leaves((updates, state.nu), ("updates", "the optimizer state"))
        lists = treedef.flatten_up_to(state.mu)
        most = max((len(a) for a in lists if isinstance(a, list)), default=0)
        # the rule takes as many slots for every leaf: where a leaf has fewer axes, a number that it gives back
        slots = [treedef.unflatten([_at(a, axis) for a in lists]) for axis in range(most)]
        b2, new = self.b2, jnp.where(self.b2 == 1, 1.0, 1 - self.b2)

        def leaf(g, m, *slots):
            n = g.ndim or 1
            spread = [a.reshape([-1 if i == axis else 1 for i in range(g.ndim)]) for axis, a in enumerate(slots[:n])]
            v = b2 * functools.reduce(jnp.minimum, spread) + new * abs_sq(g)
            positive = v > 0
            u = jnp.where(positive, g / jnp.sqrt(jnp.where(positive, v, 1.0) + self.eps), 0.0)
            m = self.b1 * m + (1 - self.b1) * u
            largest = [jnp.max(v, [a for a in range(g.ndim) if a != axis]) for axis in range(n)]
            return m, m, *largest, *slots[n:]

        updates, nu, *slots = map_leaves(leaf, updates, state.nu, *slots, params=params, same_shape=False)
        columns = [treedef.flatten_up_to(s) for s in slots]
        mu = [[c[i] for c in columns[: len(a)]] if isinstance(a, list) else a for i, a in enumerate(lists)]
        return updates, ScaleBySM3State(treedef.unflatten(mu), nu)


def _at(a: Any, axis: int) -> Any:
    """The array of one axis, a number where there is none, None for a leaf that is not there."""
    return None if is_nothing(a) else a[axis] if axis < len(a) else jnp.zeros([])


@checked
def sm3(learning_rate: Rate, momentum: Decay = 0.9, *, state_dtype: DType | None = None) -> chain:
    """SM3: w ← w − learning_rate · m, m the mean of Adagrad-like steps in little memory. See `scale_by_sm3`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.
        momentum: its b1.

    Anil et al. 2019, arXiv:1901.11150.

    >>> sm3(0.1)
    chain(scale_by_sm3(), scale_by_learning_rate(0.1))
    """
    return chain(scale_by_sm3(momentum, state_dtype=state_dtype), scale_by_learning_rate(learning_rate))
