"""Configs as arguments: what stands in one is held to what the constructor of the class takes, or refused by name."""

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
    """A copy of a config, whose entries are of the types that the library's constructors have for them.

    Raises TypeError or ValueError, naming the entry, for what is no dict with names for keys, for another type, for
    a missing one of those `needed`, and for a config that is nested too deeply.
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


def class_of(config: Any, known: dict[str, type], what: str) -> tuple[str, Any, Any]:
    """The name, the class if it is known, and the config of what `serialize` gave."""
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise TypeError(f"config must be a dict with a class_name, that of {what}, got {short(config)}")
    refuse_depth("config", config)
    name, registered = config["class_name"], config.get("registered_name")
    cls = (known.get(registered) if isinstance(registered, str) else None) or known.get(name)
    return name, cls, config.get("config", {})


@contextlib.contextmanager
def within(name: str) -> Iterator[None]:
    """Puts the place within a config before an error."""
    try:
        yield
    except (TypeError, ValueError) as e:
        raise (TypeError if isinstance(e, TypeError) else ValueError)(f"{name}: {e}") from e


@functools.cache
def _kinds(cls: type) -> dict[str, tuple[type, ...]]:
    """The types of the arguments that are plain, by name, as far as the library's own constructors take them."""
    kinds: dict[str, tuple[type, ...]] = {}
    seen: set[str] = set()
    for c in cls.__mro__:
        if (init := vars(c).get("__init__")) is None or not inspect.isfunction(init):
            continue
        hints = typing.get_type_hints(init) if init.__module__.startswith("functional_opt.") else {}
        for p in inspect.signature(init).parameters.values():
            # TF1's constructors have no annotations
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
