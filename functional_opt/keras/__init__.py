"""The stateful facade: Keras's optimizers on JAX. To port a script, change its import."""

from . import optimizers as optimizers
from . import random as random
from .engine.function import function as function
from .optimizers import Optimizer as Optimizer
from .variables.gradients import value_and_grad as value_and_grad
from .variables.indexed_slices import IndexedSlices as IndexedSlices
from .variables.variable import Variable as Variable
from .within_keras import optimizers as _within_keras  # noqa: F401  so that the real Keras takes optimizers
