"""NovoGrad: momentum of gradients that are normalized per leaf."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import map_leaves, zeros_like
from ..core.norms import abs_sq, safe_sqrt
from ..core.ranges import Decay, DType, NonNegative
from ..core.schedule import Rate, is_concrete, rate_at
from ..core.slots import Counter, Signed, Unsigned
from ..core.transformation import GradientTransformation, increment, needs_params, transformation, zero_count
from ..transforms.combining.chain import chain
from ..transforms.scaling.learning_rate import scale_by_learning_rate


class ScaleByNovogradState(NamedTuple):
    """`count`: steps done. `mu`: running sum of the directions. `nu`: running mean of ‖g‖² per leaf, shape ()."""

    count: Counter
    mu: Signed
    nu: Unsigned


@transformation
class scale_by_novograd(GradientTransformation):
    """NovoGrad's direction: u = m ← b1·m + g / (√(v + eps_root) + eps) + weight_decay · w.

    v ← b2·v + (1 − b2)·‖g‖² is one number per leaf; at the first step it is ‖g‖².

    Args:
        b1: decay rate of the sum, in [0, 1).
        b2: decay rate of v, in [0, 1).
        eps: added outside the root, ≥ 0.
        eps_root: added inside the root, ≥ 0.
        weight_decay: a number ≥ 0, a schedule, or a function of the count.
        mu_dtype: storage dtype of m; `state_dtype` if None.
        state_dtype: storage dtype of m and v. None means the params' dtype, or float32 for 16-bit params.

    Raises ValueError without params, unless weight_decay is 0.

    Ginsburg et al. 2019, arXiv:1905.11286.

    >>> tx = scale_by_novograd()
    >>> u, state = tx.update({"w": jnp.array([3.0, 4.0])}, tx.init({"w": jnp.zeros(2)}))
    >>> [round(x, 3) for x in u["w"].tolist()], state.nu["w"].item()
    ([0.6, 0.8], 25.0)
    """

    preconditions = True
    b1: Decay = 0.9
    b2: Decay = 0.25
    eps: NonNegative = 1e-8
    eps_root: NonNegative = 0.0
    weight_decay: Rate = 0.0
    mu_dtype: Static[DType | None] = None
    state_dtype: Static[DType | None] = None

    def init(self, params):
        each = jax.tree.map(lambda p: jax.ShapeDtypeStruct((), jnp.result_type(p)), params)
        mu = zeros_like(params, self.mu_dtype or self.state_dtype)
        return ScaleByNovogradState(zero_count(), mu, zeros_like(each, self.state_dtype, real=True))

    def update(self, updates, state, params=None, **extra):
        if not (is_concrete(self.weight_decay) and self.weight_decay == 0):
            needs_params(params, self)
        rate = rate_at(self.weight_decay, state.count)

        def leaf(g, m, v, w=0.0):
            size = jnp.sum(abs_sq(g))
            v = jnp.where(state.count == 0, size, self.b2 * v + (1 - self.b2) * size)
            m = self.b1 * m + g / (safe_sqrt(v + self.eps_root) + self.eps) + rate * w
            return m, m, v

        read = () if params is None else (params,)
        updates, *slots = map_leaves(leaf, updates, state.mu, state.nu, read=read, params=params, same_shape=False)
        return updates, ScaleByNovogradState(increment(state.count), *slots)


@checked
def novograd(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.25,
    eps: NonNegative = 1e-6,
    eps_root: NonNegative = 0.0,
    weight_decay: Rate = 0.0,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """NovoGrad: w ← w − learning_rate · m, m the momentum of normalized gradients. See `scale_by_novograd`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 1e-2 is usual.

    Ginsburg et al. 2019, arXiv:1905.11286.

    >>> novograd(0.01)
    chain(scale_by_novograd(eps=1e-06), scale_by_learning_rate(0.01))
    """
    rule = scale_by_novograd(b1, b2, eps, eps_root, weight_decay, state_dtype=state_dtype)
    return chain(rule, scale_by_learning_rate(learning_rate))
