"""The argument `momentum` of SGD and RMSprop."""

from typing import Any


def has_momentum(momentum: Any) -> bool:
    """Returns whether to keep a slot for momentum. This is fixed, while the momentum's value can change later."""
    if isinstance(momentum, int | float) and not 0 <= momentum <= 1:
        raise ValueError(f"`momentum` must be between [0, 1]. Received: momentum={momentum}")
    return not isinstance(momentum, int | float) or momentum > 0
