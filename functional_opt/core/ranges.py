"""Annotations for the numbers and dtypes that an argument takes; `help` shows them.

`b1: Decay` is a number in [0, 1), `Range("[0, 1)")`. The kind and shape of a number are always checked. Its value is
checked wherever it is known: in Python, in NumPy and on a device, but not in a traced array.
"""

import contextvars
import functools
import reprlib
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

T = TypeVar("T")
Scalar = float | jax.Array | np.ndarray
"""A Python or NumPy number, or a 0-d array, which may be traced."""


INT32_MAX = np.iinfo(np.int32).max


class Range:
    """Annotates a number that must lie in an interval, written as in a paper: `Range("[0, 1)")`.

    Takes Python and NumPy numbers and real arrays of shape (). Of a traced array, only the shape and kind are
    checked. Everything else must also lie in the interval; this check reads an array from its device, once (see
    `unread`).

    >>> Range("[0, 1)").check("b2", 0.999)
    0.999
    >>> Range("[0, 1)").check("b2", np.array(1.5))
    Traceback (most recent call last):
    ValueError: b2 must be in [0, 1), got 1.5
    >>> Range("[0, 1)").check("b2", "0.9")
    Traceback (most recent call last):
    TypeError: b2 must be a number in [0, 1), got '0.9' (str)
    >>> Range("[0, 1)").check("b2", np.ones(2))
    Traceback (most recent call last):
    TypeError: b2 must be a number in [0, 1), got an array of shape (2,) and dtype float64
    """

    kind = "number"

    def __init__(self, interval: str):
        low, high = interval[1:-1].split(",")
        self.interval, self.low, self.high = interval, float(low), float(high)
        self.open_low, self.open_high = interval[0] == "(", interval[-1] == ")"

    def __repr__(self):
        return self.interval

    def __contains__(self, x: float) -> bool:
        above = x > self.low if self.open_low else x >= self.low
        return above and (x < self.high if self.open_high else x <= self.high)

    def check(self, name: str, x: Any) -> Any:
        """Returns the number as it is, but an integer that int32 cannot hold as a float."""
        if type(x) is float and x in self:
            return x
        known = number(x)
        if known is NotImplemented:
            raise TypeError(f"{name} must be a {self.kind} in {self.interval}, got {described(x)}")
        if known is None:
            return x
        if isinstance(known, int) and abs(known) > INT32_MAX and not isinstance(x, jax.Array):
            try:
                x = known = float(known)
            except OverflowError:
                raise ValueError(f"{name} must be in {self.interval}, got {described(known)}") from None
        if known not in self:
            raise ValueError(f"{name} must be in {self.interval}, got {x}")
        return x


class Integer(Range):
    """Annotates a whole number in an interval, such as a count of steps. A float such as 3.0 is accepted."""

    kind = "whole number"

    def __repr__(self):
        return f"{self.kind} in {self.interval}"

    def check(self, name: str, x: Any) -> Any:
        x = super().check(name, x)
        if type(x) is not int and isinstance(known := number(x), float) and not known.is_integer():
            raise TypeError(f"{name} must be a whole number in {self.interval}, got {known}")
        return x


class OrNone(Range):
    """A range of a number that may also be None.

    >>> OrNone("[0, inf)").check("rate", None)
    >>> OrNone("[0, inf)").check("rate", -1)
    Traceback (most recent call last):
    ValueError: rate must be in [0, inf) or None, got -1
    """

    def __init__(self, interval: str):
        super().__init__(interval)
        self.interval = f"{interval} or None"

    def check(self, name: str, x: Any) -> Any:
        return None if x is None else super().check(name, x)


class Convert:
    """Annotates a field whose values are converted or rejected: `Convert(function of name and value)`.

    Args:
        check: a function of a field's name and a value, which returns the converted value or raises.
        takes: a description of the accepted values, which `help` shows.
    """

    def __init__(self, check: Callable[[str, Any], Any], takes: str = ""):
        self.check, self.takes = check, takes

    def __repr__(self):
        return self.takes or f"checked by {getattr(self.check, '__name__', self.check)}"


_is_unread = contextvars.ContextVar("is_unread", default=False)


def unread(make: Callable[[], T]) -> T:
    """Returns `make()`, whose checks look only at the shape and kind of arrays on devices, so that the host need not
    wait for values.

    For code that makes transformations at every step, from numbers that were checked before. This is no context
    manager: an interrupt at the start of its `__exit__` would leave the thread without checks.
    """
    before = _is_unread.get()
    try:
        _is_unread.set(True)
        return make()
    finally:
        _is_unread.set(before)


def number(x: Any) -> Any:
    """Returns the int or float that x is, None if it is a number of unknown value, and NotImplemented otherwise.

    >>> number(np.float32(0.5)), number(jnp.asarray(3)), number(True), number("1"), number(np.zeros(1))
    (0.5, 3, NotImplemented, NotImplemented, NotImplemented)
    >>> number(jax.ShapeDtypeStruct((), "float32")) is None
    True
    """
    if isinstance(x, int | float):
        return NotImplemented if isinstance(x, bool) else x
    if isinstance(x, type) or not (hasattr(x, "dtype") and hasattr(x, "shape")):
        return NotImplemented
    if tuple(x.shape) or not _is_real(x.dtype):
        return NotImplemented
    if not isinstance(x, jax.Array) and hasattr(x, "__jax_array__"):
        x = x.__jax_array__()  # as for Flax's variables
    if isinstance(x, core.Tracer):
        return None
    if isinstance(x, jax.Array):
        if _is_unread.get() or not x.sharding.addressable_devices:
            return None
        with jax.transfer_guard_device_to_host("allow"):  # `jax.device_get` does the same, but ten times more slowly
            x = np.asarray(x)
    if isinstance(x, np.ndarray | np.generic):
        return int(x) if jnp.issubdtype(x.dtype, jnp.integer) else float(x)
    return None


@functools.lru_cache
def _is_real(dtype: Any) -> bool:
    """Returns whether a dtype is of real numbers. Excludes timedelta64, an integer type for `np.issubdtype`."""
    try:
        return np.dtype(dtype).kind != "m" and any(jnp.issubdtype(dtype, of) for of in (jnp.integer, jnp.floating))
    except TypeError:
        return False


def described(x: Any) -> str:
    """Formats a value and its type for an error message, and keeps it short.

    >>> described("0.9"), described(10**5000)
    ("'0.9' (str)", 'an integer of some 5000 digits')
    """
    if isinstance(x, int):
        long = x.bit_length() > 128
        return (
            f"an integer of some {round(x.bit_length() * 0.30103)} digits" if long else f"{x!r} ({type(x).__name__})"
        )
    if isinstance(x, core.Tracer) or hasattr(x, "dtype") and hasattr(x, "shape") and not isinstance(x, type):
        what = "a traced array" if isinstance(x, core.Tracer) else "an array"
        return f"{what} of shape {tuple(x.shape)} and dtype {x.dtype}"
    return f"{reprlib.repr(x)} ({type(x).__name__})"


def _to_dtype(name: str, x: Any) -> Any:
    try:
        dtype = np.dtype(jax.dtypes.canonicalize_dtype(x))
    except Exception as e:  # NumPy parses strings and tuples, and raises almost anything
        raise TypeError(f"{name} must be a dtype such as 'bfloat16', got {described(x)}") from e
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating-point dtype such as 'bfloat16', got {dtype.name!r}")
    return dtype


Real = Annotated[Scalar, Range("(-inf, inf)")]
Decay = Annotated[Scalar, Range("[0, 1)")]
Fraction = Annotated[Scalar, Range("[0, 1]")]
NonNegative = Annotated[Scalar, Range("[0, inf)")]
Positive = Annotated[Scalar, Range("(0, inf)")]
Bound = Annotated[Scalar, Range("[0, inf]")]
"""A bound ≥ 0; infinity means no bound."""
Limit = Annotated[Scalar, Range("[-inf, inf]")]
"""A bound of either sign; infinity means no bound."""
PositiveBound = Annotated[Scalar, Range("(0, inf]")]
Count = Annotated[int, Integer("[0, inf)")]
PositiveInt = Annotated[int, Integer("[1, inf)")]
DType = Annotated[Any, Convert(_to_dtype, "floating-point dtype")]
