"""The arguments that all optimizers have and that are plain attributes: their defaults and their ranges."""

from typing import Any

from ...core.ranges import INT32_MAX, Integer, OrNone, Range, described, number
from .hyper import as_array, not_negative

CLIPS = "clipvalue", "clipnorm", "global_clipnorm"

SHARED: dict[str, Any] = {
    "weight_decay": None,
    "clipnorm": None,
    "global_clipnorm": None,
    "clipvalue": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
}
"""The arguments and their defaults, in the order of Keras 3's config."""


class NotNegative(OrNone):
    """A range of a number ≥ 0 that may also be None, with Keras's words for a negative one.

    With `or_function`, functions are accepted too.
    """

    def __init__(self, interval: str, or_function: bool = False):
        super().__init__(interval)
        self.or_function = or_function
        self.interval += " or a function" if or_function else ""

    def check(self, name: str, x: Any) -> Any:
        if self.or_function and callable(x) and not isinstance(x, type):
            return x
        if isinstance(known := number(x), int | float) and not known >= 0:
            not_negative(name, x)
        return super().check(name, x)


class WholeOrNone(Integer):
    """A range of a whole number that may also be None. A step is compiled for it, so that it must not be traced.

    >>> WholeOrNone(2).check("n", 3.0), WholeOrNone(2).check("n", None)
    (3, None)
    >>> WholeOrNone(2).check("n", 1)
    Traceback (most recent call last):
    ValueError: n must be in [2, 2147483647] or None, got 1
    """

    def __init__(self, least: int):
        super().__init__(f"[{least}, {INT32_MAX}]")
        self.interval += " or None"

    def check(self, name: str, x: Any) -> int | None:
        if x is None:
            return None
        if number(x) is None:
            raise TypeError(f"{name} must be a {self.kind} in {self.interval}, known when a step is compiled, "
                            f"got {described(x)}")  # fmt: skip
        return int(super().check(name, x))


RANGES: dict[str, Range] = {
    **dict.fromkeys(CLIPS, NotNegative("[0, inf]")),  # an infinite bound clips nothing
    "weight_decay": NotNegative("[0, inf)", or_function=True),
    "epsilon": NotNegative("[0, inf)"),
    "loss_scale_factor": OrNone("(0, inf)"),
    "ema_momentum": Range("[0, 1]"),
    "ema_overwrite_frequency": WholeOrNone(1),
    "gradient_accumulation_steps": WholeOrNone(2),
}
"""The ranges of the arguments, for all optimizers. A class may have a narrower one in its `ranges`."""


def checked(name: str, x: Any) -> Any:
    """Returns the value to keep of an argument. Raises TypeError or ValueError if it is not in its range."""
    return RANGES[name].check(name, as_array(x)) if name in RANGES else x
