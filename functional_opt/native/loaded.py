"""All code that uses JAX's internal interfaces: the primitives, and the check that registers with `library`."""

from . import check as check
from .newton_schulz import newton_schulz as newton_schulz
from .step import step as step
