"""Kernels for the CPU that do a whole chain in one pass over memory: an optional extension, used where it wins.

Nothing needs to be called: `tx.update` and `apply_updates` inside `jax.jit` use it by themselves. See
"The native path" in docs/design.md for what it takes, and when XLA does the work instead.
"""

from . import check as check
from .apply import applied as applied
from .library import available as available
from .library import enabled as enabled
from .library import status as status
from .link import Link as Link
from .link import Slot as Slot
from .link import Slots as Slots
from .link import links_in_turn as links_in_turn
from .link import links_of as links_of
from .newton_schulz import newton_schulz as newton_schulz
from .step import step as step
from .switch import disabled as disabled
