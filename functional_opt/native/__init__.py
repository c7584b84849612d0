"""Kernels for the CPU that do a whole chain in one pass over memory: an optional extension, used where it wins.

Nothing needs to be called: importing the package installs them behind the core's calls, and `tx.update` and
`apply_updates` inside `jax.jit` use them. See "The native path" in docs/design.md for what they take, and when XLA
does the work instead.
"""

from . import check as check
from .library import available as available
from .library import enabled as enabled
from .library import status as status
from .newton_schulz import newton_schulz as newton_schulz
from .step import step as step
from .switch import disabled as disabled


class CPUKernels:
    """What the package installs in `core.kernels`."""

    step = staticmethod(step)
    newton_schulz = staticmethod(newton_schulz)
