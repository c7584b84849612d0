"""The stateful facade: Keras's optimizers on JAX. A script ports by changing its import."""

from . import optimizers as optimizers
from .variable import Variable as Variable
