"""The names that a config may contain: the library's own, and those passed to `register`."""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import jax.numpy as jnp

from ..core.norms import global_norm
from ..core.transformation import GradientTransformation
from ..transforms.matrices.dimension_numbers import GaLoreDimensionNumbers, MuonDimensionNumbers
from ..transforms.wrapping.accumulate import skip_large_updates, skip_not_finite
from ..transforms.wrapping.inject import _Injected

DTYPES = {
    **{jnp.dtype(name).name: jnp.dtype(name) for name in ("bool", "bfloat16", "complex64", "complex128")},
    **{f"{kind}{n}": jnp.dtype(f"{kind}{n}") for kind in ("int", "uint") for n in (8, 16, 32, 64)},
    **{name: jnp.dtype(name) for name in ("float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")},
}
KINDS = ("jax", "weak", "numpy", "scalar")
"""Kinds of arrays: JAX's, JAX's 0-d ones of weak dtype such as `jnp.asarray(0.1)`, NumPy's, and NumPy scalars."""
NUMBERS = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}

TUPLES = {cls.__name__: cls for cls in (GaLoreDimensionNumbers, MuonDimensionNumbers)}
"""NamedTuples that a field may hold."""
ON_A_MESH, STORED, PRODUCTS = {"distributed": None}, {"weight_dimension_numbers": None}, {"ns_dtype": None}
ADDED: dict[str, dict[str, Any]] = {
    "MuonDimensionNumbers": {"reduction_blocks": None, "output_blocks": None},
    "flatten": {"multiple_of": 1},
    "inverse_time_decay": {"exponent": 1.0},
    "muon_labels": {"matrix_layout": None},
    "orthogonalize": {"eps_is_floor": False} | STORED | ON_A_MESH | PRODUCTS,
    "quantize_state": {"signed": (), "code": "octaves", "scales": "blocks"},
    "scale_by_dion": STORED | ON_A_MESH,
    "scale_by_dion2": PRODUCTS,
    "scale_by_lbfgs": {"negative_curvature": "skip"},
    "scale_by_muon": ON_A_MESH | PRODUCTS,
    "scale_by_muonbp": PRODUCTS,
    "scale_by_nordion2": PRODUCTS,
    "scale_by_mup": {"matrix_layout": None},
    "scale_by_normuon": STORED | ON_A_MESH | PRODUCTS,
    "scale_by_psgd_kron": ON_A_MESH,
    "scale_by_radam": {"eps_hat": False},
    "scale_by_scion": {"matrix_layout": None} | STORED | ON_A_MESH | PRODUCTS,
    "scale_by_shampoo": ON_A_MESH,
    "scale_by_shape": {"base_params": None},
    "scale_by_soap": ON_A_MESH,
    "scale_by_spam": {"density": 1.0, "key": None},
}
"""Fields that configs of older versions lack, and the values that these stand for."""
TAGS = (
    *("array", "constructor", "dict", "dtype", "function", "inject_hyperparams", "key", "list", "number", "partial"),
    *TUPLES,
)
"""The names that a `type` may have besides those of classes."""

T = TypeVar("T")
_own_classes: dict[str, type] = {}
_own_functions: dict[str, Callable] = {}


def register(x: T) -> T:
    """Lets configs contain your own class or function, by its name. A decorator that returns its argument.

    Args:
        x: a `@transformation` or `@value` class, a schedule class, or a function with a name. The function may be
            the value of a field, such as a schedule or a mask. It may also make a transformation for
            `inject_hyperparams`; reading a config then calls it. Register it before you read configs.

    Raises ValueError for a name that is taken, and TypeError for a lambda or anything but a class or a function.

    >>> from functional_opt import from_config, scale_by_schedule, to_config
    >>> @register
    ... def halving(count):
    ...     return 0.5**count
    >>> to_config(scale_by_schedule(halving))["value"]["step_size_fn"]
    {'type': 'function', 'name': 'halving'}
    >>> from_config(to_config(scale_by_schedule(halving)))
    scale_by_schedule(halving)
    """
    name = getattr(x, "__name__", None)
    if isinstance(x, type):
        if not dataclasses.is_dataclass(x):
            raise TypeError(f"register: {name} must be decorated with @transformation first")
        if any(f.name == "type" for f in dataclasses.fields(x)):
            raise ValueError(f"register: {name} has a field called type, a name that configs reserve; rename it")
        own: dict[str, Any] = _own_classes
    elif isinstance(x, types.FunctionType) and name != "<lambda>":
        own = _own_functions
    else:
        raise TypeError(f"register takes a class or a function with a name, got {x!r}; write it with def")
    assert name is not None
    taken = {**_public(), **_constructors(), **functions()}.get(name) or own.get(name)
    if name in TAGS or (taken is not None and taken is not x and not _reloaded(taken, x)):
        raise ValueError(f"register: the name {name!r} is taken by {taken or 'the format'!r}; give it another name")
    own[name] = x
    return cast(T, x)


def _reloaded(old: Any, new: Any) -> bool:
    """Returns whether `new` is `old` after its module, or a cell of a notebook, has run again."""
    same = (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)
    return same and "<locals>" not in new.__qualname__


_library: dict[str, Any] = {}


def provide(names: Mapping[str, Any]) -> None:
    """Makes the library's public names available to configs; the package's `__init__` calls it with all of them."""
    _library.update(names)


@functools.cache
def _public() -> dict[str, type]:
    """Returns the library's own values by their public names."""
    return {name: x for name, x in _library.items() if isinstance(x, type) and dataclasses.is_dataclass(x)}


@functools.cache
def _constructors() -> dict[str, Callable]:
    """Returns the library's own functions that make a transformation, by their public names."""

    def makes_one(x: Any) -> bool:
        made = typing.get_type_hints(x).get("return") if isinstance(x, types.FunctionType) else None
        return isinstance(made, type) and issubclass(made, GradientTransformation)

    return {name: x for name, x in _library.items() if makes_one(x)}


def constructors() -> dict[str, Callable]:
    """Returns, by name, the constructors that `inject_hyperparams` may be given."""
    own = {name: x for name, x in classes().items() if issubclass(x, GradientTransformation)}
    return {**_own_functions, **own, **_constructors()}


def classes() -> dict[str, type]:
    return {**_own_classes, **_public()}


def functions() -> dict[str, Callable]:
    """Returns, by name, the functions that a field may have, and the default functions of fields as class.field."""
    fields = ((name, f) for name, cls in _public().items() for f in dataclasses.fields(cls))
    defaults = {f"{name}.{f.name}": getattr(f.default, "fn", f.default) for name, f in fields}
    defaults = {name: x for name, x in defaults.items() if isinstance(x, types.FunctionType)}
    return {
        **_own_functions,
        **defaults,
        **{f.__name__: f for f in (skip_not_finite, skip_large_updates, global_norm)},
    }


def is_value(x: Any) -> bool:
    if isinstance(x, _Injected):
        return True
    return dataclasses.is_dataclass(x) and not isinstance(x, type) and classes().get(type(x).__name__) is type(x)
