"""Kernels for the CPU that do a whole chain in one pass over memory: an optional extension, used where it wins.

Nothing needs to be called: importing the package installs them behind the core's calls, and `tx.update` and
`apply_updates` inside `jax.jit` use them. See "The native path" in docs/design.md for what they take, and when XLA
does the work instead.
"""

from typing import Any

from . import library
from .switch import disabled as disabled


def _loaded() -> Any:
    """Returns what is built on JAX's inner interfaces, imported when first used, for it takes long."""
    from . import loaded

    return loaded


def available() -> bool:
    """Returns whether the extension was built, fits the installed JAX, and gives the right numbers.

    The first call looks at all of this, and warns if a kernel that was built cannot be used.
    """
    _loaded()
    return library.available()


def enabled() -> bool:
    """Returns whether code that is traced now may use the kernels.

    They are off where the extension is missing or does not fit, inside `disabled()`, and if the environment
    variable FUNCTIONAL_OPT_NATIVE is 0.
    """
    _loaded()
    return library.enabled()


def status() -> str:
    """Returns whether the kernels are in use, and with what, or why not, in a sentence.

    >>> status().split()[0]
    'kernels'
    """
    _loaded()
    return library.status()


class CPUKernels:
    """Serves the calls of `core.kernels`, where the kernels apply; the package installs it."""

    def step(self, *args: Any) -> Any:
        return _loaded().step(*args)

    def newton_schulz(self, *args: Any) -> Any:
        return _loaded().newton_schulz(*args)
