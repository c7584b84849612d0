"""Signatures: the arguments of a name, with the range, the default and the description of each."""

import inspect
import re
import typing
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple

from functional_opt.core.checks import STRUCTURE, as_given
from functional_opt.core.value import show

from . import catalog
from .docstring import read


class Parameter(NamedTuple):
    """An argument. `takes`: the accepted values in words, from its annotation. `default`: as code; "" if it has none.

    `static`: whether it is structure, so that another value compiles again. `text`: its description; `of`: the public
    name whose docstring that is, if it is another one.
    """

    name: str
    takes: str
    default: str
    static: bool
    text: str
    of: str = ""


def signature(name: str, x: Any) -> str:
    """Returns the call with its defaults, on one line or one line an argument.

    >>> import functional_opt as fo
    >>> signature("trace", fo.trace)
    'trace(decay, nesterov=False, accumulator_dtype=None)'
    """
    parts, starred = [], False
    for p in _parameters(x):
        if p.kind is p.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        starred = starred or star == "*"
        parts.append(f"{star}{p.name}" if p.default is p.empty else f"{p.name}={show(as_given(p.default))}")
    line = f"{name}({', '.join(parts)})"
    return line if len(line) <= 80 else f"{name}(\n    " + ",\n    ".join(parts) + ",\n)"


def parameters(name: str, x: Any) -> list[Parameter]:
    """Returns the arguments of a public name, each described where the library describes it.

    >>> import functional_opt as fo
    >>> b1 = parameters("adamw", fo.adamw)[1]
    >>> b1.name, b1.takes, b1.default, b1.of
    ('b1', 'number in [0, 1)', '0.9', 'scale_by_adam')
    """
    hints = _hints(x)
    found = []
    for p in _parameters(x):
        default = "" if p.default is p.empty else show(as_given(p.default))
        hint = hints.get(p.name, p.annotation)
        text, of = description(name, p.name)
        found.append(Parameter(p.name, takes(hint), default, _is_static(hint), text, of))
    return found


def _parameters(x: Any) -> list[inspect.Parameter]:
    try:
        return [p for p in inspect.signature(x).parameters.values() if p.name != "self"]
    except (TypeError, ValueError):
        return []


def _hints(x: Any) -> dict[str, Any]:
    for of in (x, getattr(x, "__init__", None)):
        try:
            if found := typing.get_type_hints(of, include_extras=True):
                return found
        except (NameError, TypeError):  # what only a type checker reads
            continue
    return {}


def description(name: str, argument: str, seen: tuple[str, ...] = ()) -> tuple[str, str]:
    """Returns the description of an argument and the name that has it, if another docstring does.

    A docstring describes an argument once, where it is defined, and other docstrings name that one: "See `trace`".
    """
    entry = catalog.find(name)
    if entry is None or name in seen:
        return "", ""
    doc = read(entry.value)
    for args in doc.args:
        if argument in args.names and args.text:
            elsewhere = re.fullmatch(r"as in `(\w+)`\.?", args.text)
            if elsewhere and (found := description(elsewhere[1], argument, (*seen, name)))[0]:
                return found[0], elsewhere[1]
            return args.text, ""
    source = inspect.getdoc(entry.value) or ""
    prose = source.split(">>>")[0]
    for other in re.findall(r"`(\w+)`", prose):
        if other != name and (near := catalog.find(other)) and callable(near.value):
            if argument in {p.name for p in _parameters(near.value)}:
                text, _ = description(other, argument, (*seen, name))
                if text:
                    return text, other
    return "", ""


def takes(hint: Any) -> str:
    """Returns the values that an annotation admits, in words; "" if it says nothing.

    >>> from functional_opt.core.ranges import Decay, DType
    >>> takes(Decay), takes(DType | None), takes(bool), takes(Literal["a", "b"])
    ('number in [0, 1)', 'floating-point dtype or None', 'bool', "'a' or 'b'")
    """
    return " or ".join(dict.fromkeys(part for part in _takes(hint) if part))


def _takes(hint: Any) -> Iterator[str]:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        rules = [m for m in hint.__metadata__ if hasattr(m, "check")]
        if not rules:
            yield from _takes(typing.get_args(hint)[0])
            return
        words = repr(rules[0])
        yield f"number in {words}" if words[0] in "[(" else words
    elif origin in (typing.Union, UnionType):
        for part in typing.get_args(hint):
            yield from _takes(part)
    elif origin is Literal:
        yield from map(repr, typing.get_args(hint))
    elif hint is type(None):
        yield "None"
    elif hint in (bool, int, float, str):
        yield hint.__name__
    elif inspect.isclass(hint) and hint is not inspect.Parameter.empty and catalog.find(hint.__name__):
        yield hint.__name__


def _is_static(hint: Any) -> bool:
    return typing.get_origin(hint) is Annotated and STRUCTURE in hint.__metadata__
