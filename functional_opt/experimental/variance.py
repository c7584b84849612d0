"""add_mean_variance_to_opt: keeps running means of the gradient and of its variance over examples in the state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import checked
from ..core.leaves import Tree, is_nothing, map_leaves, zeros_like
from ..core.queries import get
from ..core.ranges import Decay, PositiveInt
from ..core.slots import Counter, Number, Signed, Unsigned
from ..core.transformation import GradientTransformation, Transformation, increment, transformation, zero_count
from ..transforms.combining.chain import chain, identity
from .elements import Axes, get_per_element_mean_and_sum_sq_diff_grads, process


class PerElementMeanAndVarianceEMAState(NamedTuple):
    """`count`: the steps so far. `ema_decay`: that of the transformation. The other fields: means that start at 0."""

    count: Counter
    ema_decay: Number
    mean_grads_ema: Signed
    variance_grads_ema: Unsigned


@transformation
class track_per_element_mean_and_variance_with_ema(GradientTransformation):
    """Keeps running means of the updates and of the variance of one example's gradient; leaves the updates as is.

    m ← d·m + (1 − d)·g; v ← d·v + (1 − d)·S / (n − 1). `get_unbiased_mean_and_variance_ema` reads them.

    Args:
        ema_decay: d, in [0, 1).

    `update` takes S and n as `sum_sq_diff_grads` and `sample_size`, which
    `get_per_element_mean_and_sum_sq_diff_grads` provides inside a `process`.

    >>> tx = track_per_element_mean_and_variance_with_ema(0.5)
    >>> _, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), sum_sq_diff_grads=jnp.full(1, 6.0), sample_size=4)
    >>> state.mean_grads_ema.tolist(), state.variance_grads_ema.tolist()
    ([0.5], [1.0])

    Differs from Optax: the variance of one example is 0, not NaN.
    """

    ema_decay: Decay = 0.9

    def init(self, params):
        blank = zeros_like(params), zeros_like(params, real=True)
        return PerElementMeanAndVarianceEMAState(zero_count(), jnp.asarray(self.ema_decay, float), *blank)

    def update(self, updates, state, params=None, **extra):
        for name in ("sum_sq_diff_grads", "sample_size"):
            if name not in extra:
                raise ValueError(
                    f"{type(self).__name__} needs {name}: put it into a process with aggregator_has_aux after "
                    "get_per_element_mean_and_sum_sq_diff_grads, as add_mean_variance_to_opt does"
                )
        d, squares = self.ema_decay, extra["sum_sq_diff_grads"]
        weight = 1 / jnp.maximum(extra["sample_size"] - 1, 1)

        def leaf(g, m, v, s):
            return g, d * m + (1 - d) * g, d * v + (1 - d) * s * weight

        slots = state.mean_grads_ema, state.variance_grads_ema
        updates, mean, variance = map_leaves(leaf, updates, *slots, read=(squares,), params=params)
        decay = jnp.asarray(d, state.ema_decay.dtype)
        return updates, PerElementMeanAndVarianceEMAState(increment(state.count), decay, mean, variance)


def get_unbiased_mean_and_variance_ema(state: Any) -> tuple[Tree, Tree]:
    """Returns the running means, divided by 1 − dᵗ, of the one `PerElementMeanAndVarianceEMAState` in a state.

    Raises ValueError if there is none, and KeyError if there are several.

    >>> from functional_opt import sgd
    >>> tx = add_mean_variance_to_opt(sgd(0.1))
    >>> _, state = tx.update(jnp.array([1.0, 3.0]), tx.init(jnp.zeros([])))
    >>> [round(float(x), 4) for x in get_unbiased_mean_and_variance_ema(state)]
    [2.0, 2.0]
    """
    own = get(state, "PerElementMeanAndVarianceEMAState")
    if own is None:
        raise ValueError("the state has no PerElementMeanAndVarianceEMAState: use add_mean_variance_to_opt")
    weight = 1 - own.ema_decay ** jnp.maximum(own.count, 1)
    means = own.mean_grads_ema, own.variance_grads_ema
    mean, variance = (jax.tree.map(lambda m: m / weight, tree, is_leaf=is_nothing) for tree in means)
    return mean, variance


@checked
def add_mean_variance_to_opt(
    opt: Transformation, ema_decay: Decay = 0.9, per_elt_axis: Axes = 0, accumulation_steps: PositiveInt = 1
) -> process:
    """Returns an optimizer of per-example gradients, with running means of gradient and variance in its state.

    Args:
        opt: the optimizer, which gets the mean over examples and steps.
        ema_decay: as in `track_per_element_mean_and_variance_with_ema`.
        per_elt_axis, accumulation_steps: as in `get_per_element_mean_and_sum_sq_diff_grads`.

    >>> from functional_opt import sgd
    >>> tx = add_mean_variance_to_opt(sgd(1.0))
    >>> float(tx.update(jnp.array([1.0, 3.0]), tx.init(jnp.zeros([])))[0])
    -2.0
    """
    measure = get_per_element_mean_and_sum_sq_diff_grads(per_elt_axis, accumulation_steps)
    keep = track_per_element_mean_and_variance_with_ema(ema_decay)
    return process(identity(), measure, chain(keep, opt), aggregator_has_aux=True)
