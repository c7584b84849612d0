"""Keras's optimizers and schedules, and `Optimizer`, to subclass or to wrap around any chain."""

from . import legacy as legacy
from . import schedules as schedules
from .adadelta import Adadelta as Adadelta
from .adafactor import Adafactor as Adafactor
from .adagrad import Adagrad as Adagrad
from .adam import Adam as Adam
from .adamax import Adamax as Adamax
from .adamw import AdamW as AdamW
from .from_transformation import FromTransformation as FromTransformation
from .ftrl import Ftrl as Ftrl
from .graph_mode import AggregationMethod as AggregationMethod
from .lamb import Lamb as Lamb
from .legacy import AdadeltaOptimizer as AdadeltaOptimizer
from .legacy import AdagradOptimizer as AdagradOptimizer
from .legacy import AdamOptimizer as AdamOptimizer
from .legacy import FtrlOptimizer as FtrlOptimizer
from .legacy import GradientDescentOptimizer as GradientDescentOptimizer
from .legacy import MomentumOptimizer as MomentumOptimizer
from .legacy import RMSPropOptimizer as RMSPropOptimizer
from .lion import Lion as Lion
from .loss_scale import LossScaleOptimizer as LossScaleOptimizer
from .multi import MultiOptimizer as MultiOptimizer
from .multi import OptimizerMap as OptimizerMap
from .muon import Muon as Muon
from .nadam import Nadam as Nadam
from .optimizer import Optimizer as Optimizer
from .rmsprop import RMSprop as RMSprop
from .schedule_free_adamw import ScheduleFreeAdamW as ScheduleFreeAdamW
from .serialization import CLASSES
from .serialization import deserialize as deserialize
from .serialization import get as get
from .serialization import serialize as serialize
from .sgd import SGD as SGD

CLASSES.update(
    (cls.__name__, cls)
    for cls in (
        *(Adadelta, Adafactor, Adagrad, Adam, AdamW, Adamax, Ftrl, Lamb, Lion, Muon, Nadam, RMSprop, SGD),
        *(ScheduleFreeAdamW, LossScaleOptimizer, MultiOptimizer, OptimizerMap),
        *(AdadeltaOptimizer, AdagradOptimizer, AdamOptimizer, FtrlOptimizer),
        *(GradientDescentOptimizer, MomentumOptimizer, RMSPropOptimizer),
    )
)
