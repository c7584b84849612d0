"""Annotations that check: what a field of a value or an argument of a function accepts, and what is structure."""

import functools
import inspect
import typing
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from .names import did_you_mean
from .ranges import Integer, Range, described, number

T = TypeVar("T")
P = ParamSpec("P")


class _Mark:
    """Marks a field as structure."""

    def __repr__(self):
        return "static"


STRUCTURE = _Mark()
Static = Annotated[T, STRUCTURE]
"""A field that is structure, not a number: it belongs to the treedef and must be hashable."""


def _plain(check: Callable[[str, Any], Any], as_type: type) -> Callable[[str, Any], Any]:
    """Returns a check for a number that is structure: it must be known, and becomes a plain, hashable number."""

    def plain(name: str, x: Any) -> Any:
        known = number(check(name, x))
        if known is None:
            raise TypeError(f"{name} decides how the step is built and must be a plain number, got {described(x)}")
        return as_type(known)

    return plain


def checked(fn: Callable[P, T]) -> Callable[P, T]:
    """Checks a function's arguments against their annotations, as `value` checks a class's fields.

    >>> from functional_opt.core.ranges import NonNegative
    >>> @checked
    ... def double(rate: NonNegative, up: bool = True):
    ...     return 2 * rate
    >>> double(-1.0)
    Traceback (most recent call last):
    ValueError: rate must be in [0, inf), got -1.0
    """
    signature = inspect.signature(fn)

    @functools.cache  # read at the first call, so that importing the library does not wait for it
    def rules() -> dict[str, Callable[[str, Any], Any]]:
        return checks_of(typing.get_type_hints(fn, include_extras=True))

    @functools.wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        checks = rules()
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            bind(fn.__name__, signature, args, kwargs)  # raises an error that names the function and the argument
            raise
        for name, x in bound.arguments.items():
            x = bound.arguments[name] = as_given(x)
            if name in checks:
                bound.arguments[name] = checks[name](name, x)
        return fn(*bound.args, **bound.kwargs)

    shown = [p.replace(default=_default(p.annotation, p.default)) for p in signature.parameters.values()]
    setattr(wrapper, "__signature__", signature.replace(parameters=shown))  # noqa: B010
    return wrapper


def bind(name: str, signature: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> inspect.BoundArguments:
    """Returns `signature.bind(...)`; raises TypeError with the name of the function and a hint at what was meant."""
    known = signature.parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
    if unknown := [x for x in kwargs if x not in known and not open_ended]:
        raise TypeError(
            f"{name}() got an unexpected keyword argument {unknown[0]!r}{did_you_mean(unknown[0], known)}"
        )
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as e:
        raise TypeError(f"{name}() {e}") from None


class _Shown:
    """Wraps a numeric default of an argument that is structure, for the signature.

    `optax.inject_hyperparams` traces defaults that are numbers; it leaves this one alone.
    """

    def __init__(self, x: Any):
        self.x = x

    def __eq__(self, other):
        return self.x == as_given(other)

    def __hash__(self):
        return hash(self.x)

    def __repr__(self):
        return repr(self.x)


def as_given(x: Any) -> Any:
    """Returns the original of a default from the signature of a `checked` function; anything else as it is."""
    return x.x if isinstance(x, _Shown) else x


def _default(hint: Any, x: Any) -> Any:
    marks, base = getattr(hint, "__metadata__", ()), get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return _Shown(x) if type(x) in (int, float) and (STRUCTURE in marks or base is int) else x


def checks_of(hints: dict[str, Any]) -> dict[str, Callable[[str, Any], Any]]:
    """Returns the checks that annotations ask for, by name."""
    checks = {name: _check(hint) for name, hint in hints.items() if name != "return"}
    return {name: check for name, check in checks.items() if check is not None}


def _check(hint: Any, static: bool = False) -> Callable[[str, Any], Any] | None:
    """Returns the check that an annotation asks for, or None."""
    origin = get_origin(hint)
    if origin is Annotated:
        static = static or STRUCTURE in hint.__metadata__
        rules = [m for m in hint.__metadata__ if hasattr(m, "check")]
        if not rules:
            return _check(get_args(hint)[0], static)
        if static and isinstance(rules[0], Range):
            return _plain(rules[0].check, int if isinstance(rules[0], Integer) else float)
        return rules[0].check
    if _is_function(hint):
        return _a_function
    if origin in (Union, UnionType):
        others = [a for a in get_args(hint) if a is not type(None)]
        if len(others) > 1:  # what a function may be given in place of has its own check, or none
            others = [a for a in others if not _is_function(a)]
        found = [c for c in (_check(a, static) for a in others) if c is not None]
        if not found:
            return None
        (check,) = found
        if type(None) in get_args(hint):
            return lambda name, x: None if x is None else check(name, x)
        return check
    if origin is Literal:
        return lambda name, x: _one_of(name, x, get_args(hint))
    if hint is bool:
        return lambda name, x: _one_of(name, x, (False, True))
    return None


def _is_function(hint: Any) -> bool:
    return hint is Callable or hint is typing.Callable or get_origin(hint) is Callable


def _a_function(name: str, x: Any) -> Any:
    if not callable(x):
        made = hasattr(x, "init") and hasattr(x, "update")
        hint = "; give the function that makes it, as adam in place of adam(1e-3)" if made else ""
        raise TypeError(f"{name} must be a function, got {described(x)}{hint}")
    return x


def _one_of(name: str, x: Any, choices: tuple) -> Any:
    if not any(x is c or (isinstance(x, str) and x == c) for c in choices):
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {x!r}")
    return x
