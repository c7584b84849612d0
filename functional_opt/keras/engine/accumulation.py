"""Accumulation: gradients of several steps add up to one update."""

from typing import Any

import jax
import jax.numpy as jnp

from ...core import kernels
from ...core.transformation import GradientTransformation
from ...transforms.wrapping.guard import update_if
from ..variables.indexed_slices import IndexedSlices
from .by_variable import ByVariable


def accumulate(n: int, now: jax.Array, sums: ByVariable, grads: ByVariable) -> tuple[ByVariable, ByVariable]:
    """Returns the mean of the last n gradients, valid only at an update, and the sums to carry on.

    now: whether this step updates. Gradients may be IndexedSlices; the mean is dense.
    """
    total = dict(sums)
    for key, g in grads.items():
        if isinstance(g, IndexedSlices):
            total[key] = sums[key].at[g.indices].add(g.values.astype(sums[key].dtype))
        elif g is not None:
            total[key] = sums[key] + g.astype(sums[key].dtype)
    mean = ByVariable((key, None if g is None else total[key] / n) for key, g in grads.items())
    # a variable without a gradient now keeps its sum for the next update
    kept = {key: jnp.where(now, 0, total[key]) for key, g in grads.items() if g is not None}
    return mean, ByVariable(total | kept)


def update_with_mean(
    n: int, now: jax.Array, tx: GradientTransformation, grads: ByVariable, state: Any, values: ByVariable
) -> tuple[ByVariable, Any]:
    """Accumulates gradients; at an update, gives their mean to `tx`. The state is the sums and the state of `tx`."""

    def pure(grads, state, values):
        mean, sums = accumulate(n, now, state[0], grads)
        updates, inner = update_if(now, tx, mean, state[1], values, {})
        return updates, (sums, inner)

    def operations():
        scalars = kernels.AccumulateScalars(take=1, mean=0, weight=1, total=1, share=1 / n, close=now)
        return kernels.accumulated(scalars, state[0], kernels.operations_of(tx, state[1], values))

    return kernels.step_of(operations, pure, grads, state, values)
