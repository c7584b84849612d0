"""Converts transformations to plain JSON and back: `to_config`, `from_config`, `register`.

A config contains what `repr` shows. It can be kept beside a checkpoint, compared with `diff` and edited::

    {"version": 1, "value": {"type": "chain", "transforms": [
        {"type": "scale_by_adam", "b1": 0.9, "b2": 0.999, ...},
        {"type": "scale_by_learning_rate", "learning_rate": 0.001, "flip_sign": true}]}}

An object with a `type` is an instance of the class with that public name, with all its fields. Otherwise it is one of
these: a `dtype`, an `array`, a `key`, a `number` that JSON does not have, a `function` by its name, a `partial`, a
`list`, a `dict` whose keys are not all strings, or `inject_hyperparams` of a `constructor` by its name. A plain list
stands for a tuple.
"""

from typing import Any

from ..core.value import show
from .decode import decode, same_keys
from .depth import refuse_depth, within_the_stack
from .encode import encode, remedy
from .registry import is_value
from .registry import register as register
from .words import short

VERSION = 1


def to_config(tx: Any) -> dict[str, Any]:
    """Returns a transformation or schedule as plain JSON: dicts, lists, strings, numbers, booleans and None.

    Every field is written, even if it has its default, so that a config keeps its meaning when a default changes.
    Arrays are written exactly, number by number; their placement on devices is not written.

    Args:
        tx: a transformation, a schedule or path rules, which may be nested.

    Raises TypeError, naming the place, for anything that cannot be saved: a function without a registered name, a
    tracer, or a transformation that is neither the library's nor registered, such as Optax's. Raises ValueError for a
    transformation nested deeper than `from_config` reads.

    >>> from functional_opt import scale, scale_by_schedule
    >>> to_config(scale(-0.1))
    {'version': 1, 'value': {'type': 'scale', 'step_size': -0.1}}
    >>> to_config(scale_by_schedule(lambda count: 0.1))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    TypeError: scale_by_schedule.step_size_fn cannot be saved: <lambda> (function). Write it with def and ...
    """
    if not is_value(tx):
        raise TypeError(f"to_config takes a transformation or a schedule, got {show(tx)}. {remedy(tx)}")
    with within_the_stack("the transformation"):
        config = {"version": VERSION, "value": encode(tx, type(tx).__name__)}
    refuse_depth("to_config(...)", config)
    return config


def from_config(config: Any) -> Any:
    """Returns the transformation or schedule that `to_config` described; it equals the original, even after JSON.

    `from_config(json.loads(json.dumps(to_config(tx)))) == tx`. A config cannot import anything or run its own code:
    it can only name the library's classes and whatever was passed to `register`. Constructors check the fields.

    Raises ValueError or TypeError, naming the place in the config, for an unknown name, an unknown or missing field,
    a value out of range or of the wrong type, another version, nesting deeper than 200 levels of dicts and lists, and
    objects nested within themselves.

    >>> from functional_opt import adamw, cosine_decay_schedule
    >>> tx = adamw(cosine_decay_schedule(1e-3, 1000), mask={"*/bias": False})
    >>> from_config(to_config(tx)) == tx
    True
    >>> config = to_config(tx)
    >>> config["value"]["transforms"][0]["b2"] = 1.5
    >>> from_config(config)
    Traceback (most recent call last):
    ValueError: chain.transforms[0].b2: b2 must be in [0, 1), got 1.5
    """
    if not isinstance(config, dict) or "version" not in config:
        raise TypeError(f"config must be a dict with a version, as to_config makes it; got {short(config)}")
    if config["version"] != VERSION or isinstance(config["version"], bool):
        raise ValueError(
            f"config.version is {short(config['version'])}; this library reads version {VERSION}: "
            "load it with the functional_opt that wrote it"
        )
    same_keys("config", ("version", "value"), config)
    refuse_depth("config", config)
    node = config["value"]
    name = node.get("type") if isinstance(node, dict) else None
    with within_the_stack("config.value"):
        value = decode(node, name if isinstance(name, str) else "config.value")
    if not is_value(value):
        raise TypeError(f"config.value must be a transformation or a schedule, got {short(node)}")
    return value
