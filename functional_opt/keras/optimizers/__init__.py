"""Keras's optimizers and schedules, and `Optimizer` to subclass or to put over any chain."""

from . import schedules as schedules
from .adam import Adam as Adam
from .adam import Adamax as Adamax
from .adam import AdamW as AdamW
from .adam import Nadam as Nadam
from .base import Optimizer as Optimizer
from .composite import Muon as Muon
from .composite import ScheduleFreeAdamW as ScheduleFreeAdamW
from .gradient import SGD as SGD
from .gradient import Adadelta as Adadelta
from .gradient import Adagrad as Adagrad
from .gradient import Ftrl as Ftrl
from .gradient import RMSprop as RMSprop
from .modern import Adafactor as Adafactor
from .modern import Lamb as Lamb
from .modern import Lion as Lion
from .serialization import deserialize as deserialize
from .serialization import get as get
from .serialization import serialize as serialize
