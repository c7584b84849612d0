"""Keras's optimizers and schedules, and `Optimizer`, to subclass or to wrap around any chain."""

from . import legacy as legacy
from . import schedules as schedules
from .adam import Adam as Adam
from .adam import Adamax as Adamax
from .adam import AdamW as AdamW
from .adam import Nadam as Nadam
from .optimizer import Optimizer as Optimizer
from .composite import Muon as Muon
from .composite import ScheduleFreeAdamW as ScheduleFreeAdamW
from .from_transformation import FromTransformation as FromTransformation
from .gradient import SGD as SGD
from .gradient import Adadelta as Adadelta
from .gradient import Adagrad as Adagrad
from .gradient import Ftrl as Ftrl
from .gradient import RMSprop as RMSprop
from .graph_mode import AggregationMethod as AggregationMethod
from .legacy import AdadeltaOptimizer as AdadeltaOptimizer
from .legacy import AdagradOptimizer as AdagradOptimizer
from .legacy import AdamOptimizer as AdamOptimizer
from .legacy import FtrlOptimizer as FtrlOptimizer
from .legacy import GradientDescentOptimizer as GradientDescentOptimizer
from .legacy import MomentumOptimizer as MomentumOptimizer
from .legacy import RMSPropOptimizer as RMSPropOptimizer
from .loss_scale import LossScaleOptimizer as LossScaleOptimizer
from .modern import Adafactor as Adafactor
from .modern import Lamb as Lamb
from .modern import Lion as Lion
from .multi import MultiOptimizer as MultiOptimizer
from .multi import OptimizerMap as OptimizerMap
from .serialization import CLASSES
from .serialization import deserialize as deserialize
from .serialization import get as get
from .serialization import serialize as serialize

CLASSES.update(
    (cls.__name__, cls)
    for cls in (
        *(Adadelta, Adafactor, Adagrad, Adam, AdamW, Adamax, Ftrl, Lamb, Lion, Muon, Nadam, RMSprop, SGD),
        *(ScheduleFreeAdamW, LossScaleOptimizer, MultiOptimizer, OptimizerMap),
        *(AdadeltaOptimizer, AdagradOptimizer, AdamOptimizer, FtrlOptimizer),
        *(GradientDescentOptimizer, MomentumOptimizer, RMSPropOptimizer),
    )
)
