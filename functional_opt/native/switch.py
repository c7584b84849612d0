"""Turns the kernels off, and records why."""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_here = threading.local()
_reason: list[str] = []  # at most one
_lock = threading.Lock()


def turn_off(reason: str, warn: bool = True) -> None:
    """Leaves all work to XLA from now on. The first call warns with its reason; later calls change nothing.

    Inside `trying()`, raises RuntimeError with the reason instead.
    """
    if getattr(_here, "trying", False):
        raise RuntimeError(reason)
    with _lock:
        first = not _reason
        if first:
            _reason.append(reason)
    if first and warn:
        warnings.warn(f"functional_opt: native kernels are off, XLA does their work: {reason}", RuntimeWarning, 2)


def reason() -> str | None:
    """Returns why the kernels are off in this process; None if nothing has turned them off."""
    return _reason[0] if _reason else None


def why_not() -> str | None:
    """Returns why code that is traced now may not use the kernels; None if nothing is known against it."""
    if os.environ.get("FUNCTIONAL_OPT_NATIVE") == "0":
        return "the environment variable FUNCTIONAL_OPT_NATIVE is 0"
    if getattr(_here, "off", False):
        return "inside native.disabled()"
    return reason()


@contextmanager
def trying() -> Iterator[None]:
    """Makes `turn_off` raise on this thread, so that a trial of the kernels sees the reason as an error."""
    _here.trying = True
    try:
        yield
    finally:
        _here.trying = False


@contextmanager
def disabled() -> Iterator[None]:
    """Leaves all work that is traced inside to XLA; programs that were compiled before stay as they are.

    >>> from functional_opt import native
    >>> with disabled():
    ...     native.enabled()
    False
    """
    before = getattr(_here, "off", False)
    _here.off = True
    try:
        yield
    finally:
        _here.off = before
