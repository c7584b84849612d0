"""cautious, scale_by_cautious, add_cautious_decayed_weights: steps or decay only where signs agree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.leaves import Tree, map_leaves
from ...core.ranges import Positive
from ...core.slots import States
from ...core.transformation import GradientTransformation, Transformation, transformation
from .decay import add_decayed_weights


class CautiousState(NamedTuple):
    """`inner_state`: the inner state."""

    inner_state: States


@transformation
class scale_by_cautious(GradientTransformation):
    """Keeps a direction o only where it agrees with g: u = φ·o · n / (Σφ + eps), φ = 1 where o·g > 0, else 0.

    n is the number of elements of the leaf, so the fewer elements are kept, the larger they become. Wrap a rule such
    as `scale_by_adam()`, whose direction o is to be subtracted from the params. Place it before the learning rate.

    Args:
        inner: a gradient transformation.
        eps: > 0; 1 in the paper, which halves the step of a leaf with one element.

    Liang et al. 2024, arXiv:2411.16085, algorithm 2: C-AdamW, whose weight decay comes after this.

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
    """Keeps an optimizer's step s only where it is downhill: u = φ·s · n / (Σφ + eps), φ = 1 where s·g < 0, else 0.

    Works like `scale_by_cautious`, but around an optimizer with its learning rate. Its weight decay counts as part of
    the step.

    Args:
        inner: an optimizer, whose updates are to be added to the params.
        eps: > 0; 1 in the paper, which halves the step of a leaf with one element.

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
    """Returns a number with the sign of x·y, or of Re(x·ȳ) if complex, even where that product underflows."""
    return (jnp.sign(x) * jnp.sign(y).conj()).real


@transformation
class add_cautious_decayed_weights(add_decayed_weights):
    """Decays only those weights that the update makes smaller: u = g + weight_decay · w where g·w ≥ 0, else g.

    Use it instead of `add_decayed_weights`, with the same arguments, before the learning rate in a chain.

    Raises ValueError without params, or naming the leaf if the mask does not fit them.

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
