"""Keras's optimizers: `SGD`, `Adam`, `RMSprop`, `Optimizer` over any chain, and the schedules."""

from . import schedules as schedules
from .base import Optimizer as Optimizer
from .standard import SGD as SGD
from .standard import Adam as Adam
from .standard import RMSprop as RMSprop
