"""Formats values for error messages, so that they are short and always printable."""

import reprlib
from typing import Any

from ..core.ranges import described


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        # Python does not print more than 4300 digits
        return described(x) if x.bit_length() > 128 else super().repr_int(x, level)


_short = _Short()


def short(x: Any) -> str:
    """Returns the beginning and the end of what `repr` prints.

    >>> short(list(range(100))), short([10**5000])
    ('[0, 1, 2, 3, 4, 5, ...]', '[an integer of some 5000 digits]')
    """
    return _short.repr(x)
