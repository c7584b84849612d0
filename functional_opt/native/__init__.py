"""CPU kernels that run an entire chain in one pass over memory: an optional extension, used where it is faster.

Nothing needs to be called: importing the package installs them behind the core's calls, and `tx.update` and
`apply_updates` inside `jax.jit` use them. "The kernels" in docs/how_it_works.md says what they take, and when XLA
does the work instead.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..core.leaves import Tree
from . import library
from .switch import disabled as disabled


@functools.cache
def _loaded() -> Any:
    """Returns the code that uses JAX's internal interfaces, imported at the first use because it takes long."""
    from . import loaded

    return loaded


def available() -> bool:
    """Returns whether the extension was built, fits the installed JAX, and computes correct results.

    The first call checks all of this, and warns if the extension was built but cannot be used.
    """
    _loaded()
    return library.available()


def enabled() -> bool:
    """Returns whether code that is traced now may use the kernels.

    They are off if the extension is missing or does not fit, inside `disabled()`, and if the environment
    variable FUNCTIONAL_OPT_NATIVE is 0.
    """
    _loaded()
    return library.enabled()


def status() -> str:
    """Returns one line that says whether the kernels are on and how they were built, or why they are off.

    >>> status().split()[0]
    'kernels'
    """
    _loaded()
    return library.status()


class CPUKernels:
    """Serves the calls of `core.kernels` where the kernels apply; the package installs it."""

    def step(self, operations: Callable, pure: Callable, updates: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
        return _loaded().step(operations, pure, updates, state, params)

    def newton_schulz(self, x: jax.Array, rows: Sequence[Any], pure: Callable, in_pairs: bool) -> jax.Array:
        return _loaded().newton_schulz(x, rows, pure, in_pairs)
