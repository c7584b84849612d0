"""Encodes values as JSON."""

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from ..core.paths import Frozen
from ..core.schedule import _Function as PlainFunction
from ..core.transformation import GradientTransformation
from ..core.value import show
from ..transforms.observing.monitor import _measure as PlainMeasure
from ..transforms.wrapping.inject import _Injected
from .registry import DTYPES, TUPLES, constructors, functions, is_value


def encode(x: Any, at: str) -> Any:
    if isinstance(x, core.Tracer):
        raise TypeError(
            f"{at} is a tracer, {x}: its value is not known; call to_config outside of jit, vmap and grad"
        )
    if isinstance(x, _Injected):
        named = {"numbers": x.numbers, "others": x.others.arguments, "given": x.given, "dtype": x.dtype}
        parts = {name: encode(part, f"{at}.{name}") for name, part in named.items()}
        return {"type": "inject_hyperparams", "inner_factory": _constructor(x.factory, f"{at}.inner_factory")} | parts
    if is_value(x):
        fields = [f.name for f in dataclasses.fields(x)]
        return {"type": type(x).__name__} | {f: encode(getattr(x, f), f"{at}.{f}") for f in fields}
    if TUPLES.get(type(x).__name__) is type(x):
        return {"type": type(x).__name__} | {f: encode(getattr(x, f), f"{at}.{f}") for f in x._fields}
    if isinstance(x, PlainFunction | PlainMeasure):
        return encode(x.fn, at)
    if isinstance(x, Frozen):
        return encode(x.thaw(), at)
    if isinstance(x, np.generic | np.ndarray | jax.Array):
        return _encode_array(x, at)
    if x is None or type(x) in (bool, int, str):
        return x
    if type(x) is float:
        return x if np.isfinite(x) else {"type": "number", "number": str(x)}
    if type(x) is tuple:
        return [encode(y, f"{at}[{i}]") for i, y in enumerate(x)]
    if type(x) is list:
        return {"type": "list", "items": encode(tuple(x), at)}
    if type(x) is dict and all(isinstance(k, str) for k in x) and "type" not in x:
        return {k: encode(y, f"{at}[{k!r}]") for k, y in x.items()}
    if type(x) is dict:
        items = [[encode(k, f"{at}: the key {k!r}"), encode(y, f"{at}[{k!r}]")] for k, y in x.items()]
        return {"type": "dict", "items": items}
    if isinstance(x, np.dtype) and DTYPES.get(x.name) == x:
        return {"type": "dtype", "name": x.name}
    if isinstance(x, functools.partial):
        return _encode_partial(x, at, encode)
    for name, fn in functions().items():
        if fn is x:
            return {"type": "function", "name": name}
    raise TypeError(f"{at} cannot be saved: {show(x)} ({type(x).__name__}). {remedy(x)}")


def _encode_partial(x: functools.partial, at: str, of_function: Callable) -> dict[str, Any]:
    rest = {"args": encode(x.args, f"{at}.args"), "keywords": encode(x.keywords, f"{at}.keywords")}
    return {"type": "partial", "function": of_function(x.func, f"{at}.function")} | rest


def _constructor(x: Any, at: str) -> dict[str, Any]:
    """Encodes the constructor that `inject_hyperparams` was given, by its name."""
    if isinstance(x, functools.partial):
        return _encode_partial(x, at, _constructor)
    for name, fn in constructors().items():
        if fn is x:
            return {"type": "constructor", "name": name}
    what = "Decorate it with @functional_opt.register (a function needs a name of its own)"
    raise TypeError(f"{at} cannot be saved: {show(x)} ({type(x).__name__}). {what}, or use one of functional_opt's")


def _encode_array(x: Any, at: str) -> dict[str, Any]:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _encode_array(jax.random.key_data(x), at)
        return {"type": "key", "impl": str(jax.random.key_impl(x)), "data": data}
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        raise TypeError(f"{at} cannot be saved: this process has only a part of the array. Gather it first")
    if DTYPES.get(x.dtype.name) != x.dtype:
        raise TypeError(f"{at} cannot be saved: an array of dtype {x.dtype}. Use one of {', '.join(DTYPES)}")
    kind = "scalar" if isinstance(x, np.generic) else "numpy" if isinstance(x, np.ndarray) else "jax"
    kind = "weak" if getattr(x, "weak_type", False) and x.shape == () else kind
    flat: Any = np.asarray(x).ravel()
    parts = (flat.real, flat.imag) if np.iscomplexobj(flat) else (flat,)
    wide = [p.astype("float64") if jnp.issubdtype(p.dtype, jnp.floating) else p for p in parts]
    data = [[str(n) if isinstance(n, float) and not np.isfinite(n) else n for n in p.tolist()] for p in wide]
    return {"type": "array", "kind": kind, "dtype": flat.dtype.name, "shape": list(np.shape(x)), "data": data}


def remedy(x: Any) -> str:
    if isinstance(x, type):
        return f"Call it first: {x.__name__}(...)"
    if isinstance(x, types.FunctionType) and x.__name__ == "<lambda>":
        return "Write it with def and decorate it with @functional_opt.register; for most masks, path rules will do"
    if isinstance(x, GradientTransformation) and hasattr(x, "init_fn"):
        return (
            "It is made of two functions without names: use functional_opt's transformation of that name, or write a "
            "class with @transformation and decorate it with @functional_opt.register"
        )
    if dataclasses.is_dataclass(x):
        return f"Decorate its class {type(x).__name__} with @functional_opt.register"
    if isinstance(x, types.FunctionType):
        return "Decorate it with @functional_opt.register"
    if callable(getattr(x, "init", None)):
        return "It is not a transformation of functional_opt: use functional_opt's of that name"
    if callable(x):
        return "Call it from a function that @functional_opt.register decorates"
    return "A config holds numbers, strings, None, tuples, lists, dicts, arrays and registered values"
