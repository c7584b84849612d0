"""Transformations as plain JSON and back: `to_config`, `from_config`, `register`.

A config says what `repr` says, so that it can be kept beside a checkpoint, compared with `diff` and edited::

    {"version": 1, "value": {"type": "chain", "transforms": [
        {"type": "scale_by_adam", "b1": 0.9, "b2": 0.999, ...},
        {"type": "scale_by_learning_rate", "learning_rate": 0.001, "flip_sign": true}]}}

An object with a `type` is a value of the class with that public name, all its fields written out, or one of
a few others: a `dtype`, an `array`, a `key`, a `number` that JSON does not have, a `function` by its name, a
`partial`, a `list`, a `dict` whose keys are not all strings,
`inject_hyperparams` of a `constructor` by its name. A plain list stands for a tuple.
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
    """A transformation or schedule as plain JSON: dicts, lists, strings, numbers, booleans and None.

    Every field is written, also where it has its default, so that a config means the same when a default changes.
    Arrays are written number by number, exactly; where they lie is not.

    Args:
        tx: a transformation, schedule or path rules, of any nesting.

    Raises TypeError naming the place of what cannot be saved: a function without a registered name, a tracer,
    a transformation that is not the library's (Optax's) nor registered; ValueError for one nested deeper than
    `from_config` reads.

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
    """The transformation or schedule that `to_config` described, equal to it, also after a trip through JSON.

    `from_config(json.loads(json.dumps(to_config(tx)))) == tx`. Nothing is imported and no code of a config is run: it
    can name the library's own classes and what `register` was given, whose constructors check the fields.

    Raises ValueError or TypeError naming the place within the config for a name that is not known, a field too many
    or too few, a value out of range or of another type, for another version, and for what is nested deeper than 200
    levels of dicts and lists, or within itself.

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
