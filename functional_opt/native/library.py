"""The compiled library: whether it is there, fits the installed jaxlib, and computes what it should."""

import ctypes
import functools
from pathlib import Path

import jax

from .switch import reason, turn_off, why_not

STEP, SUMS_OF_SQUARES = "functional_opt_step", "functional_opt_sums_of_squares"
NEWTON_SCHULZ = "functional_opt_newton_schulz"


@functools.cache
def _load() -> None:
    for path in Path(__file__).parent.glob("kernels*.so"):
        try:
            library = ctypes.CDLL(str(path))
            for name in (STEP, SUMS_OF_SQUARES, NEWTON_SCHULZ):
                jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
        except (OSError, AttributeError):  # built for another machine or version
            continue
        except Exception as e:
            turn_off(f"JAX refuses them: {e}")
        return
    turn_off("the extension was not built", warn=False)


def available() -> bool:
    """Returns whether the extension was built, fits the installed JAX, and gives the right numbers."""
    _load()
    return reason() is None


def enabled() -> bool:
    """Returns whether what is traced now may use the kernels.

    They are off where the extension is missing or does not fit, inside `disabled()`, and if the environment
    variable FUNCTIONAL_OPT_NATIVE is 0.
    """
    return why_not() is None and available()
