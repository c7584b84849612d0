"""get, serialize, deserialize: optimizers from names and configs."""

from typing import Any

from ...base import GradientTransformation
from ...config.words import short
from . import legacy
from .adam import Adam, Adamax, AdamW, Nadam
from .base import Optimizer
from .composite import Muon, ScheduleFreeAdamW
from .configs import class_of, within
from .gradient import SGD, Adadelta, Adagrad, Ftrl, RMSprop
from .loss_scale import LossScaleOptimizer
from .modern import Adafactor, Lamb, Lion
from .multi import MultiOptimizer, OptimizerMap

CLASSES: dict[str, type[Optimizer]] = {
    c.__name__: c
    for c in (
        *(Adadelta, Adafactor, Adagrad, Adam, AdamW, Adamax, Ftrl, Lamb, Lion, Muon, Nadam, RMSprop, SGD),
        *(ScheduleFreeAdamW, LossScaleOptimizer, MultiOptimizer),
        *(legacy.AdadeltaOptimizer, legacy.AdagradOptimizer, legacy.AdamOptimizer, legacy.FtrlOptimizer),
        *(legacy.GradientDescentOptimizer, legacy.MomentumOptimizer, legacy.RMSPropOptimizer),
    )
}


def serialize(optimizer: Optimizer | OptimizerMap) -> dict[str, Any]:
    """The optimizer's class and config as plain JSON: module, class_name, config, registered_name.

    >>> serialize(SGD(0.5))["config"]["learning_rate"]
    0.5
    """
    name = type(optimizer).__name__
    known = isinstance(optimizer, OptimizerMap) or CLASSES.get(name) is type(optimizer)
    return {
        "module": "keras.optimizers" if known else None,
        "class_name": name,
        "config": optimizer.get_config(),
        "registered_name": None if known else name,
    }


def deserialize(config: dict[str, Any], custom_objects: dict[str, type] | None = None) -> Optimizer:
    """The optimizer that `serialize` described, or one of the older `{class_name, config}` format.

    Args:
        config: class_name, in any case, and config.
        custom_objects: classes of one's own, by name.

    Raises ValueError for a class that is neither Keras's nor in `custom_objects`, TypeError for no such dict, and
    either, naming the entry, for a config that the class cannot have.

    >>> deserialize({"class_name": "sgd", "config": {"learning_rate": 0.5}}).get_config()["learning_rate"]
    0.5
    """
    custom = custom_objects or {}
    name, cls, inner = class_of(config, custom, "an optimizer")
    by_lower_case = {known.lower(): c for known, c in CLASSES.items()}
    if cls is None and (cls := by_lower_case.get(name.lower())) is None:
        raise ValueError(
            f"Unknown optimizer: {short(name)}. Known are {sorted(CLASSES)} and custom_objects: {list(custom)}"
        )
    with within(name):
        return cls.from_config(inner, custom_objects=custom)


def get(identifier: Any, **kwargs: Any) -> Optimizer:
    """An optimizer from its name in any case, its config, a gradient transformation, or itself.

    Raises ValueError for anything else.

    >>> type(get("adam")).__name__, get({"class_name": "SGD", "config": {"momentum": 0.5}}).momentum.numpy().item()
    ('Adam', 0.5)
    """
    if isinstance(identifier, Optimizer):
        return identifier
    if isinstance(identifier, GradientTransformation):
        return Optimizer.from_transformation(identifier, **kwargs)
    if isinstance(identifier, str):
        identifier = {"class_name": identifier, "config": kwargs.pop("config", {})}
    if isinstance(identifier, dict):
        return deserialize(identifier, **kwargs)
    raise ValueError(f"Could not interpret optimizer identifier: {identifier!r}")
