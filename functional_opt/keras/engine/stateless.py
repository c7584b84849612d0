"""stateless: a step as a pure function of values."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..variables import recording
from ..variables.variable import Variable
from .views import put_all


def stateless(
    apply: Callable[[Sequence[Any], Sequence[Variable]], None],
    own: Sequence[Variable],
    variables: Sequence[Variable],
    own_values: Sequence[Any],
    grads: Sequence[Any],
    values: Sequence[Any],
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Returns the values of `variables` and `own` after `apply(grads, variables)`, if these were theirs before.

    Raises ValueError for a list of the wrong length.
    """
    for name, given, known in (
        ("optimizer_variables", own_values, own),
        ("grads", grads, variables),
        ("trainable_variables", values, variables),
    ):
        if len(given) != len(known):
            raise ValueError(f"{name} must have {len(known)} arrays, got {len(given)}")

    def run() -> tuple[list[jax.Array], list[jax.Array]]:
        put_all(own, [jnp.asarray(x) for x in own_values])
        for v, x in zip(variables, values, strict=True):
            v._value = jnp.asarray(x)
        apply(grads, variables)
        return [v._value for v in variables], [v._value for v in own]

    return recording.call(run, (), ()).out
