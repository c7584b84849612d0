"""get, serialize, deserialize: optimizers from names and configs."""

from typing import Any

from ...config.words import short
from ...core.transformation import GradientTransformation
from .configs import class_of, within
from .optimizer import Optimizer

CLASSES: dict[str, type] = {}
"""The library's own classes by their names in configs. This folder's `__init__` fills it."""


def serialize(optimizer: Any) -> dict[str, Any]:
    """Returns the class and config of an optimizer as plain JSON: module, class_name, config, registered_name.

    >>> from functional_opt.keras.optimizers import SGD
    >>> serialize(SGD(0.5))["config"]["learning_rate"]
    0.5
    """
    cls = getattr(type(optimizer), "_facade", type(optimizer))  # what it was before the real Keras took it
    name = cls.__name__
    known = CLASSES.get(name) is cls
    return {
        "module": "keras.optimizers" if known else None,
        "class_name": name,
        "config": optimizer.get_config(),
        "registered_name": None if known else name,
    }


def deserialize(config: dict[str, Any], custom_objects: dict[str, type] | None = None) -> Optimizer:
    """Returns the optimizer that `serialize` described. Also reads the older `{class_name, config}` format.

    Args:
        config: a dict with class_name, in upper or lower case, and config.
        custom_objects: the user's own classes, by name.

    Raises ValueError for a class that is neither Keras's nor in `custom_objects`, TypeError if `config` is not such a
    dict, and either, naming the entry, for a config that the class does not accept.

    >>> deserialize({"class_name": "sgd", "config": {"learning_rate": 0.5}}).get_config()["learning_rate"]
    0.5
    """
    custom = custom_objects or {}
    name, cls, inner = class_of(config, custom, "an optimizer")
    own = {known: c for known, c in CLASSES.items() if issubclass(c, Optimizer)}
    by_lower_case = {known.lower(): c for known, c in own.items()}
    if cls is None and (cls := by_lower_case.get(name.lower())) is None:
        raise ValueError(
            f"Unknown optimizer: {short(name)}. Known are {sorted(own)} and custom_objects: {list(custom)}"
        )
    with within(name):
        return cls.from_config(inner, custom_objects=custom)


def get(identifier: Any, **kwargs: Any) -> Optimizer:
    """Returns an optimizer from its name in any case, its config, a gradient transformation, or an optimizer.

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
