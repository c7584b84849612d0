"""Turns configs into constructor arguments; an entry that the constructor does not take raises, by name."""

import contextlib
import functools
import inspect
import typing
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np

from ...config.depth import refuse_depth
from ...config.words import short
from ...core.ranges import number

PLAIN = {bool: "True or False", int: "a whole number", float: "a number", str: "a string", NoneType: "None"}


def as_arguments(cls: type, config: Any, *needed: str) -> dict[str, Any]:
    """Returns a copy of a config, after checking its entries against the types in the library's constructors.

    Raises TypeError if the config is not a dict with strings as keys, or if an entry has another type; ValueError if
    an entry in `needed` is missing or the config is nested too deeply. Both name the entry.
    """
    name = cls.__name__
    if not isinstance(config, dict) or not all(isinstance(k, str) for k in config):
        raise TypeError(f"the config of {name} must be a dict of its arguments by name, got {short(config)}")
    refuse_depth(f"the config of {name}", config)
    for k in needed:
        if k not in config:
            raise ValueError(f"{name} needs {k!r} in its config, which has {sorted(config)}")
    for k, kinds in _kinds(cls).items():
        if k in config and not any(_is(kind, config[k]) for kind in kinds):
            words = " or ".join(PLAIN[kind] for kind in kinds)
            raise TypeError(f"{k} of {name} must be {words}, got {short(config[k])} ({type(config[k]).__name__})")
    return dict(config)


def check_flag(cls: type, name: str, x: Any) -> None:
    """Raises TypeError for an argument that must be True or False and is not."""
    if _kinds(cls).get(name) == (bool,) and not _is(bool, x):
        raise TypeError(f"{name} of {cls.__name__} must be True or False, got {short(x)} ({type(x).__name__})")


def class_of(config: Any, known: dict[str, type], what: str) -> tuple[str, Any, Any]:
    """Returns the name, the class (None if it is unknown) and the inner config, from the result of `serialize`."""
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise TypeError(f"config must be a dict with a class_name, that of {what}, got {short(config)}")
    refuse_depth("config", config)
    name, registered = config["class_name"], config.get("registered_name")
    cls = (known.get(registered) if isinstance(registered, str) else None) or known.get(name)
    return name, cls, config.get("config", {})


@contextlib.contextmanager
def within(name: str) -> Iterator[None]:
    """Prefixes an error with the name of the entry of the config that it is about."""
    try:
        yield
    except (TypeError, ValueError) as e:
        raise (TypeError if isinstance(e, TypeError) else ValueError)(f"{name}: {e}") from e


@functools.cache
def _kinds(cls: type) -> dict[str, tuple[type, ...]]:
    """Returns, by name, the types of arguments that are plain, as the library's own constructors declare them."""
    kinds: dict[str, tuple[type, ...]] = {}
    seen: set[str] = set()
    for c in cls.__mro__:
        if (init := vars(c).get("__init__")) is None or not inspect.isfunction(init):
            continue
        hints = typing.get_type_hints(init) if init.__module__.startswith("functional_opt.") else {}
        for p in inspect.signature(init).parameters.values():
            # the default's type, as TF1's constructors have no annotations
            hint = hints.get(p.name, type(p.default) if isinstance(p.default, bool | str) else Any)
            found = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            if p.name not in seen and all(kind in PLAIN for kind in found):
                kinds[p.name] = found
            seen.add(p.name)
    return kinds


def _is(kind: type, x: Any) -> bool:
    if kind is bool:
        return isinstance(x, bool | np.bool_) or (isinstance(x, int) and x in (0, 1))
    if kind in (int, float):
        known = number(x)
        return (
            known is None or known is not NotImplemented and known == known and (kind is float or known == known // 1)
        )
    return isinstance(x, kind)
