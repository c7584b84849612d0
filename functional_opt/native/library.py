"""The compiled library: whether it is there, and whether it is to be used."""

import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

STEP, SUMS_OF_SQUARES = "functional_opt_step", "functional_opt_sums_of_squares"
NEWTON_SCHULZ = "functional_opt_newton_schulz"
_here = threading.local()


@functools.cache
def available() -> bool:
    """Whether the extension was built, and could be loaded."""
    for path in Path(__file__).parent.glob("kernels*.so"):
        try:
            library = ctypes.CDLL(str(path))
            for name in (STEP, SUMS_OF_SQUARES, NEWTON_SCHULZ):
                jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
        except (OSError, AttributeError):  # built for another machine or version
            continue
        return True
    return False


def enabled() -> bool:
    """Whether what is traced now may use the kernels.

    They are off where the extension is missing, inside `disabled()`, and if the environment variable
    FUNCTIONAL_OPT_NATIVE is 0.
    """
    return not getattr(_here, "off", False) and os.environ.get("FUNCTIONAL_OPT_NATIVE") != "0" and available()


@contextmanager
def disabled() -> Iterator[None]:
    """What is traced inside leaves all work to XLA; what was compiled before stays as it is.

    >>> with disabled():
    ...     enabled()
    False
    """
    before = getattr(_here, "off", False)
    _here.off = True
    try:
        yield
    finally:
        _here.off = before
