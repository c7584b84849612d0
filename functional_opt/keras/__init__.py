"""The stateful facade: Keras's optimizers on JAX. To port a script, change its import."""

from . import optimizers as optimizers
from .variables.indexed_slices import IndexedSlices as IndexedSlices
from .optimizers import Optimizer as Optimizer
from .variables.variable import Variable as Variable
