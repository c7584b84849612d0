"""cautious, scale_by_cautious, add_cautious_decayed_weights: steps and decay only where signs agree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.leaves import Tree, map_leaves
from ...core.ranges import Positive
from ...core.slots import States
from ...core.transformation import GradientTransformation, Transformation, transformation
from .decay import add_decayed_weights


class CautiousState(NamedTuple):
    """`inner_state`: that of the transformation within."""

    inner_state: States


@transformation
class scale_by_cautious(GradientTransformation):
    """u = φ·o · n / (Σφ + eps) where o is the direction of another rule, and φ = 1 where o·g > 0, else 0.

    n is the size of the leaf: what is left of a direction grows as much as there is less of it. To stand before
    the learning rate, around a rule such as `scale_by_adam()`: o is to be subtracted from the params.

    Args:
        inner: a gradient transformation.
        eps: > 0; 1 in the paper, which halves a step of a leaf of one element.

    Liang et al. 2024, arXiv:2411.16085, algorithm 2: C-AdamW, with its decay after this.

    >>> from functional_opt import trace
    >>> tx = scale_by_cautious(trace(0.5), eps=1e-8)
    >>> _, state = tx.update(jnp.array([1.0, 1.0]), tx.init(jnp.zeros(2)))
    >>> tx.update(jnp.array([-0.25, 0.5]), state)[0].round(3).tolist()  # trace alone gives 0.25 and 1.0
    [0.0, 2.0]

    Differs from the authors' code in eps: there the factor is n / max(Σφ, n/1000).
    """

    inner: Transformation
    eps: Positive = 1.0

    def init(self, params):
        return CautiousState(self.inner.init(params))

    def update(self, updates, state, params=None, **extra):
        o, inner_state = self.inner.update(updates, state.inner_state, params, **extra)
        return _where_agreed(o, updates, 1.0, self.eps, params), CautiousState(inner_state)


@transformation
class cautious(GradientTransformation):
    """u = φ·s · n / (Σφ + eps) where s is the step of a whole optimizer, and φ = 1 where s is downhill, s·g < 0.

    As `scale_by_cautious`, around an optimizer with its learning rate; its decay counts as part of the step.

    Args:
        inner: an optimizer, whose updates are to be added to the params.
        eps: > 0; 1 in the paper, which halves a step of a leaf of one element.

    Liang et al. 2024, arXiv:2411.16085, algorithm 1.

    >>> from functional_opt import sgd
    >>> tx = cautious(sgd(1.0, momentum=0.5), eps=1e-8)
    >>> _, state = tx.update(jnp.array([1.0, 1.0]), tx.init(jnp.zeros(2)))
    >>> tx.update(jnp.array([-0.25, 0.5]), state)[0].round(3).tolist()
    [0.0, -2.0]
    """

    inner: Transformation
    eps: Positive = 1.0

    def init(self, params):
        return CautiousState(self.inner.init(params))

    def update(self, updates, state, params=None, **extra):
        s, inner_state = self.inner.update(updates, state.inner_state, params, **extra)
        return _where_agreed(s, updates, -1.0, self.eps, params), CautiousState(inner_state)


def _where_agreed(o: Tree, grads: Tree, sign: float, eps: Any, params: Tree) -> Tree:
    def leaf(o, g):
        agreed = sign * _agreement(o, g) > 0
        return jnp.where(agreed, o, 0) * (o.size / (jnp.sum(agreed) + eps))

    return map_leaves(leaf, o, read=(grads,), params=params)


def _agreement(x: jax.Array, y: jax.Array) -> jax.Array:
    """1, 0 or −1 as x·y is, also where that is too small to be told from 0; the real part of x·ȳ for complex ones."""
    return (jnp.sign(x) * jnp.sign(y).conj()).real


@transformation
class add_cautious_decayed_weights(add_decayed_weights):
    """u = g + weight_decay · w where g·w ≥ 0, else g: what the update makes smaller decays too, and nothing else.

    In place of `add_decayed_weights`, with its arguments, in a chain before the learning rate.

    Raises ValueError without params, or naming the leaf where the mask does not fit them.

    Chen et al. 2025, arXiv:2510.12402, algorithm 1.

    >>> tx, w = add_cautious_decayed_weights(0.5), jnp.array([2.0, -2.0])
    >>> tx.update(jnp.array([1.0, 1.0]), tx.init(w), w)[0].tolist()
    [2.0, 1.0]
    """

    def update(self, updates, state, params=None, **extra):
        decayed, state = super().update(updates, state, params, **extra)

        def leaf(g, u, w):
            return jnp.where(_agreement(g, w) >= 0, u, g)

        return map_leaves(leaf, updates, read=(decayed, params), params=params), state
