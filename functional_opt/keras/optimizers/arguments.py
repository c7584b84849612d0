"""Checks and defaults of arguments that several constructors have."""

from typing import Any

import jax
import numpy as np

from ...core.ranges import Range, number
from .optimizer import EPSILON


def has_momentum(momentum: Any) -> bool:
    """Returns whether to keep a slot for momentum. This is fixed, while the momentum's value can change later."""
    if isinstance(momentum, int | float) and not 0 <= momentum <= 1:
        raise ValueError(f"`momentum` must be between [0, 1]. Received: momentum={momentum}")
    return not isinstance(momentum, int | float) or momentum > 0


def or_default(epsilon: Any, default: float = EPSILON) -> Any:
    """Returns Keras's default for an epsilon of None or 0, and anything else as it is."""
    return default if epsilon is None or number(epsilon) == 0 else epsilon


def check(within: Range, **given: Any) -> None:
    """Raises an error that names the argument, for one that is neither a number in a range nor a function."""
    for name, x in given.items():
        if isinstance(x, type) or not callable(x):
            foreign = hasattr(x, "__array__") and not isinstance(x, jax.Array)
            within.check(name, np.asarray(x) if foreign else x)


def sign(x: Any) -> int:
    """Returns 1 for a positive number, -1 for a negative one, and 0 for anything else.

    >>> sign(2), sign(-0.5), sign(float("nan")), sign("-1")
    (1, -1, 0, 0)
    """
    known = number(x)
    return (known > 0) - (known < 0) if isinstance(known, int | float) else 0
