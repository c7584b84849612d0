"""Ranges: the numbers and dtypes that an argument takes, said by its annotation and shown by `help`.

`b1: Decay` is a number in [0, 1), `Range("[0, 1)")`. Whatever is known of a number is held to that: its kind and
shape always, its value wherever it can be looked at, in Python, in NumPy and on a device, but not in a traced array.
"""

import contextlib
import contextvars
import functools
import reprlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

Scalar = float | jax.Array | np.ndarray
"""A number: of Python, of NumPy, or a 0-d array, which may be traced."""


INT32_MAX = np.iinfo(np.int32).max


class Range:
    """Annotates a number that must lie in an interval, written as in a paper: `Range("[0, 1)")`.

    Takes numbers of Python and NumPy and real arrays of shape (). A traced array is held to its shape and kind,
    everything else to the interval as well; that reads an array from its device, once (see `unread`).

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
        """The number as it is, but a float for an integer that int32 cannot hold."""
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
    """Annotates a whole number in an interval: a count of steps, say. A float may be one: 3.0."""

    kind = "whole number"

    def __repr__(self):
        return f"{self.kind} in {self.interval}"

    def check(self, name: str, x: Any) -> Any:
        x = super().check(name, x)
        if type(x) is not int and isinstance(known := number(x), float) and not known.is_integer():
            raise TypeError(f"{name} must be a whole number in {self.interval}, got {known}")
        return x


class Convert:
    """Annotates a field whose values are put in one form, or refused: `Convert(function of name and value)`.

    Args:
        check: a function of a field's name and a value.
        takes: the values it takes, in words, which `help` shows.
    """

    def __init__(self, check: Callable[[str, Any], Any], takes: str = ""):
        self.check, self.takes = check, takes

    def __repr__(self):
        return self.takes or f"checked by {getattr(self.check, '__name__', self.check)}"


_is_unread = contextvars.ContextVar("is_unread", default=False)


@contextlib.contextmanager
def unread() -> Iterator[None]:
    """Inside, arrays on devices are held to their shape and kind only: to read them, the host would wait for them.

    For code that makes transformations at every step, of numbers that were checked when they came in.
    """
    token = _is_unread.set(True)
    try:
        yield
    finally:
        _is_unread.reset(token)


def number(x: Any) -> Any:
    """The int or float that x is, None where it is one whose value cannot be looked at, NotImplemented for others.

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
        x = x.__jax_array__()  # Flax's variables are such boxes
    if isinstance(x, core.Tracer):
        return None
    if isinstance(x, jax.Array):
        if _is_unread.get() or not x.sharding.addressable_devices:
            return None
        with jax.transfer_guard_device_to_host("allow"):  # as `jax.device_get`, which takes ten times as long
            x = np.asarray(x)
    if isinstance(x, np.ndarray | np.generic):
        return int(x) if jnp.issubdtype(x.dtype, jnp.integer) else float(x)
    return None


@functools.lru_cache
def _is_real(dtype: Any) -> bool:
    """Whether it is of real numbers; for `np.issubdtype` timedelta64 is one, too."""
    try:
        return np.dtype(dtype).kind != "m" and any(jnp.issubdtype(dtype, of) for of in (jnp.integer, jnp.floating))
    except TypeError:
        return False


def described(x: Any) -> str:
    """A value and its type for an error message, short whatever it is.

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
"""A number ≥ 0 that something is held below or above: infinity holds nothing."""
Limit = Annotated[Scalar, Range("[-inf, inf]")]
"""A number of either sign that bounds another: infinity does not bound it."""
PositiveBound = Annotated[Scalar, Range("(0, inf]")]
Count = Annotated[int, Integer("[0, inf)")]
PositiveInt = Annotated[int, Integer("[1, inf)")]
DType = Annotated[Any, Convert(_to_dtype, "floating-point dtype")]
