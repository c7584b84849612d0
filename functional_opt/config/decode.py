"""Decodes JSON into values: looks up every object in closed tables, and checks every field."""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np

from ..transforms.wrapping.inject import _Injected, _Others
from .registry import ADDED, DTYPES, KINDS, NUMBERS, TUPLES, classes, constructors, functions
from .words import short


def decode(node: Any, at: str) -> Any:
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, list | tuple):
        return tuple(decode(x, f"{at}[{i}]") for i, x in enumerate(node))
    if not isinstance(node, dict) or not all(isinstance(k, str) for k in node):
        raise TypeError(f"{at} must be JSON, got {short(node)} ({type(node).__name__})")
    if "type" not in node:
        return {k: decode(x, f"{at}[{k!r}]") for k, x in node.items()}
    rest = {k: x for k, x in node.items() if k != "type"}
    known = {**classes(), **TUPLES, **DECODERS}
    kind = _named(known, node["type"], f"{at}: type")
    if not isinstance(kind, type):
        keys, make = kind
        same_keys(at, keys, rest)
        return make(at, **rest)
    rest = ADDED.get(node["type"], {}) | rest
    same_keys(at, getattr(kind, "_fields", None) or [f.name for f in dataclasses.fields(kind)], rest)
    fields = {k: decode(x, f"{at}.{k}") for k, x in rest.items()}
    for k, hint in _hints(kind).items():
        if k in fields and not _fits(hint, fields[k]):
            raise TypeError(f"{at}.{k} must be {_words(hint)}, got {short(rest[k])} ({type(rest[k]).__name__})")
    with _at(at, fields):
        return kind(**fields)


@contextlib.contextmanager
def _at(at: str, fields: Iterable[str] = ()) -> Iterator[None]:
    """Prefixes the error of a constructor with its place in the config, and with the field that the error names."""
    try:
        yield
    except (TypeError, ValueError) as e:
        place = next((f".{k}" for k in fields if re.match(rf"{k}\b", str(e))), "")
        raise (TypeError if isinstance(e, TypeError) else ValueError)(f"{at}{place}: {e}") from e


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _decode_dict(at: str, items: Any) -> dict:
    if not isinstance(items, list) or not all(isinstance(item, list) and len(item) == 2 for item in items):
        raise TypeError(f"{at}.items must be a list of pairs, got {short(items)}")
    pairs = [(decode(k, f"{at}: key {i}"), decode(x, f"{at}[{short(k)}]")) for i, (k, x) in enumerate(items)]
    try:
        return dict(pairs)
    except TypeError as e:
        raise TypeError(f"{at}.items: {e}; a key must be a string, a number or a tuple of them") from e


def _decode_list(at: str, items: Any) -> list:
    if not isinstance(items, list):
        raise TypeError(f"{at}.items must be a list, got {short(items)}")
    return list(decode(items, at))


def _decode_partial(at: str, function: Any, args: Any, keywords: Any, decode_function: Callable = decode) -> Any:
    fn, args = decode_function(function, f"{at}.function"), decode(args, f"{at}.args")
    keywords = decode(keywords, f"{at}.keywords")
    named = isinstance(keywords, dict) and all(isinstance(k, str) for k in keywords)
    if not (callable(fn) and isinstance(args, tuple) and named):
        raise TypeError(f"{at} must be a partial of a function, a list and a dict, got {short([function, args])}")
    return functools.partial(fn, *args, **keywords)


def _decode_constructor(at: str, name: Any) -> Any:
    raise TypeError(f"{at} must not be a constructor: only inject_hyperparams, or a partial for it, may have one")


def _decode_factory(node: Any, at: str) -> Callable:
    """Returns a constructor by its name, or a partial of one."""
    kind = node.get("type") if isinstance(node, dict) else None
    rest = {k: x for k, x in node.items() if k != "type"} if isinstance(node, dict) else {}
    if kind == "constructor":
        same_keys(at, DECODERS[kind][0], rest)
        return _named(constructors(), rest["name"], f"{at}.name")
    if kind == "partial":
        same_keys(at, DECODERS[kind][0], rest)
        return _decode_partial(at, **rest, decode_function=_decode_factory)
    decode(node, at)
    raise TypeError(f"{at} must be a constructor or a partial of one, got {short(node)}")


def _decode_injected(at: str, inner_factory: Any, numbers: Any, others: Any, given: Any, dtype: Any) -> Any:
    factory = _decode_factory(inner_factory, f"{at}.inner_factory")
    nodes = {"numbers": numbers, "others": others, "given": given, "dtype": dtype}
    numbers, others, given, dtype = (decode(node, f"{at}.{name}") for name, node in nodes.items())
    named = isinstance(given, tuple) and all(isinstance(name, str) for name in given)
    if not (isinstance(numbers, dict) and isinstance(others, dict) and named):
        raise TypeError(f"{at}: numbers and others must be dicts, and given a list of names; got {short(nodes)}")
    for name, x in numbers.items():
        if callable(x) and not callable(getattr(x, "init", None)):
            raise TypeError(f"{at}.numbers[{name!r}] must be a number or a WrappedSchedule, got {short(x)}")
    with _at(f"{at}.inner_factory"):
        expected = inspect.signature(factory).parameters
    same_keys(at, expected, numbers | others)
    if not set(given) <= set(expected) or len(numbers | others) < len(numbers) + len(others):
        raise ValueError(
            f"{at}: each argument must be in either numbers or others, and given may only name arguments; "
            f"got {short(nodes)}"
        )
    with _at(at):
        return _Injected(factory, numbers, _Others(others), given, dtype)


def _decode_array(at: str, kind: Any, dtype: Any, shape: Any, data: Any) -> Any:
    kind = _named({name: name for name in KINDS}, kind, f"{at}.kind")
    to = _named(DTYPES, dtype, f"{at}.dtype")
    try:
        rows = [[NUMBERS[n] if isinstance(n, str) else n for n in row] for row in data]
        if not all(type(n) in _numbers_of(to) for row in rows for n in row) or any(n < 0 for n in shape):
            raise ValueError("elements of another type, or a negative length")
        wide = [np.array(row, "float64" if jnp.issubdtype(to, jnp.inexact) else to) for row in rows]
        wide = wide[0] if len(wide) == 1 else np.stack(wide, -1).view("complex128")
        with np.errstate(over="raise"):
            x = wide.astype(to).reshape(shape)
        x = x[()] if kind == "scalar" else x.item() if kind == "weak" else x
        if kind == "scalar" and isinstance(x, np.ndarray):
            raise ValueError("a scalar has no shape")
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError) as e:
        what = f"an array of dtype {dtype} and shape {short(shape)}"
        raise ValueError(f"{at}: data is not {what}: {short(data)}") from e
    if kind in ("jax", "weak") and jax.dtypes.canonicalize_dtype(to) != to:
        raise ValueError(f"{at}: an array of dtype {dtype} needs jax.config.update('jax_enable_x64', True)")
    return jnp.asarray(x) if kind in ("jax", "weak") else x


def _numbers_of(dtype: Any) -> tuple[type, ...]:
    """Returns the Python types that the elements of an array may have in JSON."""
    return (bool,) if dtype.name == "bool" else (int, float) if jnp.issubdtype(dtype, jnp.inexact) else (int,)


def _decode_key(at: str, impl: Any, data: Any) -> Any:
    try:
        return jax.random.wrap_key_data(decode(data, f"{at}.data"), impl=impl)
    except (TypeError, ValueError) as e:
        raise ValueError(f"{at}: data is not a key of {impl!r}: {short(data)}: {e}") from e


DECODERS: dict[str, tuple[tuple[str, ...], Callable]] = {
    "array": (("kind", "dtype", "shape", "data"), _decode_array),
    "constructor": (("name",), _decode_constructor),
    "dict": (("items",), _decode_dict),
    "dtype": (("name",), lambda at, name: _named(DTYPES, name, f"{at}.name")),
    "function": (("name",), lambda at, name: _named(functions(), name, f"{at}.name")),
    "inject_hyperparams": (("inner_factory", "numbers", "others", "given", "dtype"), _decode_injected),
    "key": (("impl", "data"), _decode_key),
    "list": (("items",), _decode_list),
    "number": (("number",), lambda at, number: _named(NUMBERS, number, f"{at}.number")),
    "partial": (("function", "args", "keywords"), _decode_partial),
}


def _named(known: dict[str, Any], name: Any, what: str) -> Any:
    if isinstance(name, str) and name in known:
        return known[name]
    near = difflib.get_close_matches(name[:99] if isinstance(name, str) else "", known, n=3, cutoff=0.0)
    raise ValueError(
        f"{what} {short(name)} is not known; the nearest are {', '.join(near)}. Register your own classes and "
        "functions with functional_opt.register first"
    )


def same_keys(at: str, expected: Any, node: dict) -> None:
    for k in expected:
        if k not in node:
            raise ValueError(f"{at}.{k} is missing; the fields are {', '.join(expected)}")
    for k in node:
        if k not in expected:
            raise ValueError(
                f"{at}.{k} is not known, got {short(node[k])}; the fields are {', '.join(expected) or 'none'}"
            )


def _fits(hint: Any, x: Any) -> bool:
    """Returns whether a value has the annotated type; True if the constructor checks it anyway."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return any(hasattr(m, "check") for m in hint.__metadata__) or _fits(args[0], x)
    if origin in (Union, UnionType):
        return any(_fits(a, x) for a in args)
    if origin is tuple and args[1:] == (...,):
        return isinstance(x, tuple) and all(_fits(args[0], y) for y in x)
    if origin is tuple:
        return isinstance(x, tuple) and len(x) == len(args) and all(map(_fits, args, x))
    if hint in (int, float):
        return isinstance(x, int if hint is int else int | float) and not isinstance(x, bool)
    kind = origin or hint
    return kind is Any or not isinstance(kind, type) or isinstance(x, kind)


def _words(hint: Any) -> str:
    inner = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return inner.__name__ if isinstance(inner, type) and not get_args(inner) else str(inner).replace("typing.", "")
