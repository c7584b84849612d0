"""Values: frozen dataclasses that are pytrees whose leaves are their numbers.

Everything the library hands out (transformations, schedules, path rules) is such a value. It can be
closed over or passed to a jitted function, mapped by `jax.vmap`, differentiated by `jax.grad`,
compared, hashed, pickled, edited with `dataclasses.replace` and printed as the code that made it.

The annotation of a field says what the field accepts::

    @value
    class scale_by_adam(GradientTransformation):
        b1: Decay = 0.9                   # a leaf, checked to lie in [0, 1)
        nesterov: Static[bool] = False    # part of the tree's structure, never traced

`checked` checks the arguments of a plain function against its annotations in the same way.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from .checks import STRUCTURE, bind, checks_of

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def value(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass and a pytree, and checks its annotated fields.

    Equality and hash are by value, for arrays too; only tracers are compared by identity. Rebuilding a value from
    leaves (inside `jax.jit`, `jax.tree.map` ...) runs no checks, so leaves may be anything.

    >>> from typing import Literal
    >>> from functional_opt.core.checks import Static
    >>> from functional_opt.core.ranges import NonNegative
    >>> @value
    ... class shift:
    ...     by: NonNegative
    ...     mode: Static[Literal["up", "down"]] = "up"
    >>> shift(2.0, mode="down")
    shift(2.0, mode='down')
    >>> shift(2.0) == shift(2.0), hash(shift(2.0)) == hash(shift(2.0))
    (True, True)
    >>> jax.tree.map(lambda x: x + 1, shift(2.0))
    shift(3.0)
    """
    dataclasses.dataclass(init=False, eq=False, repr=False)(cls)
    signature = _Signature.of(cls)
    # type hints are read at the first use, so that importing the library does not wait for them
    read = functools.cache(functools.partial(_Fields.of, cls, signature))
    then = vars(cls).get("__post_init__")

    def __init__(self, *args, **kwargs):
        for name, x in read().bound(args, kwargs).items():
            object.__setattr__(self, name, x)
        self.__post_init__()

    def __post_init__(self):
        fields = read()
        for name, check in fields.checks.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        for name in fields.statics:
            object.__setattr__(self, name, by_value(_structure(name, getattr(self, name))))
        if then is not None:
            then(self)

    def flatten(x):
        d, fields = x.__dict__, read()
        return [d[n] for n in fields.leaves], tuple(d[n] for n in fields.statics)

    def flatten_with_keys(x):
        d, fields = x.__dict__, read()
        keys = map(jax.tree_util.GetAttrKey, fields.leaves)
        return [(key, d[key.name]) for key in keys], tuple(d[n] for n in fields.statics)

    def unflatten(aux, children):
        x, fields = object.__new__(cls), read()
        x.__dict__.update(zip(fields.statics, aux, strict=True))
        x.__dict__.update(zip(fields.leaves, children, strict=True))
        return x

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    _values.add(cls)
    if "__init__" not in vars(cls):
        setattr(cls, "__init__", __init__)  # noqa: B010
        setattr(cls, "__signature__", signature)  # noqa: B010
    setattr(cls, "__post_init__", __post_init__)  # noqa: B010
    for method in (_repr, _eq, _hash, _setattr, _delattr):
        name = f"_{method.__name__}__"
        if name not in vars(cls):
            setattr(cls, name, method)
    return cls


class _Fields(NamedTuple):
    """The fields of a value: which are structure and which are leaves, their checks and their signature."""

    name: str
    statics: tuple[str, ...]
    leaves: tuple[str, ...]
    checks: dict[str, Callable[[str, Any], Any]]
    positional: tuple[str, ...]
    defaults: dict[str, Any]
    signature: inspect.Signature

    @classmethod
    def of(cls, kind: type, signature: inspect.Signature) -> "_Fields":
        """Reads the annotations of a value's class."""
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
        statics = tuple(f.name for f in fields if STRUCTURE in getattr(hints[f.name], "__metadata__", ()))
        leaves = tuple(f.name for f in fields if f.name not in statics)
        positional = tuple(f.name for f in fields if not f.kw_only)
        defaults = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
        return cls(kind.__name__, statics, leaves, checks_of(hints), positional, defaults, signature)

    def bound(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Returns the value of every field for a call of the constructor, or raises TypeError as Python does."""
        given = dict(zip(self.positional, args)) | kwargs  # noqa: B905, the length is checked below
        values = self.defaults | given
        if len(given) < len(args) + len(kwargs) or values.keys() != self.signature.parameters.keys():
            bind(self.name, self.signature, args, kwargs)
        return values


class _Signature(inspect.Signature):
    """The signature of a value's class; a subclass with its own constructor has the signature of that one."""

    __slots__ = ("cls",)

    def __get__(self, instance: Any, owner: type) -> inspect.Signature:
        if owner.__init__ is self.cls.__init__:
            return self
        own = inspect.signature(owner.__init__)
        return own.replace(parameters=[*own.parameters.values()][1:])

    @classmethod
    def of(cls, kind: type) -> "_Signature":
        """Makes the signature from the fields."""
        fields = dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
        made = cls(
            [
                inspect.Parameter(
                    f.name,
                    inspect.Parameter.KEYWORD_ONLY if f.kw_only else inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=inspect.Parameter.empty if f.default is dataclasses.MISSING else f.default,
                    annotation=f.type,
                )
                for f in sorted(fields, key=lambda f: bool(f.kw_only))
            ]
        )
        made.cls = kind
        return made


def _setattr(self, name: str, x: Any) -> None:
    if type(self) in _values or name in self.__dataclass_fields__:
        how = f", by dataclasses.replace(tx, {name}=...)" if name in self.__dataclass_fields__ else ""
        raise dataclasses.FrozenInstanceError(
            f"cannot assign to field {name!r}: {type(self).__name__} is immutable; make another{how}"
        )
    object.__setattr__(self, name, x)


def _delattr(self, name: str) -> None:
    if type(self) in _values or name in self.__dataclass_fields__:
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
    object.__delattr__(self, name)


_values: set[type] = set()


def is_value(x: Any) -> bool:
    """Returns whether x is an instance of a class decorated with `value`."""
    return type(x) in _values


def _structure(name: str, x: Any) -> Any:
    """Returns a value as structure: an array of shape () as a Python number. Raises TypeError for a tracer."""
    if isinstance(x, core.Tracer):
        raise TypeError(
            f"{name} determines shapes or what is computed, and must be known before tracing, got {x}; "
            f"optax.inject_hyperparams needs static_args=({name!r},), functional_opt's does not"
        )
    is_number = isinstance(x, np.generic | np.ndarray | jax.Array) and np.shape(x) == ()
    return x.item() if is_number and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


class Partial(functools.partial):
    """A `functools.partial` that compares by value, so that a new but equal one does not cause a recompilation."""

    def __eq__(self, other):
        return (
            type(self) is type(other)
            and self.func == other.func
            and comparison_key(self._given) == comparison_key(other._given)
        )

    def __hash__(self):
        return hash(self.func)

    def __repr__(self):
        keywords = (f"{name}={show(x)}" for name, x in self.keywords.items())
        return f"functools.partial({', '.join([show(self.func), *map(show, self.args), *keywords])})"

    @property
    def _given(self):
        return self.args, self.keywords


def by_value(x: Any) -> Any:
    """Returns a `functools.partial` as one that compares by value; anything else as it is.

    >>> by_value(functools.partial(max, 1)) == by_value(functools.partial(max, 1))
    True
    """
    return Partial(x.func, *x.args, **x.keywords) if type(x) is functools.partial else x


def _repr(self) -> str:
    parts, positional = [], True
    for f in dataclasses.fields(self):
        x = getattr(self, f.name)
        if f.default is not dataclasses.MISSING:
            positional = False
            if comparison_key(x) == comparison_key(f.default):
                continue
        parts.append(show(x) if positional and not f.kw_only else f"{f.name}={show(x)}")
    return f"{type(self).__name__}({', '.join(parts)})"


def show(x: Any) -> str:
    """Formats a field as one would type it: a dtype or a function by its name."""
    if isinstance(x, np.dtype):
        return repr(x.name)
    if inspect.isfunction(x):
        return x.__qualname__
    return repr(x)


def _eq(self, other) -> Any:
    return comparison_key(self) == comparison_key(other) if type(self) is type(other) else NotImplemented


def _hash(self) -> int:
    return hash(comparison_key(self))


def comparison_key(x: Any) -> Any:
    """Returns what is equal for equal trees, arrays compared by their numbers; it can be hashed."""
    leaves, treedef = jax.tree.flatten(x)
    return treedef, tuple(map(_leaf_key, leaves))


def _leaf_key(x: Any) -> Any:
    if isinstance(x, core.Tracer):
        return id(x)
    if isinstance(x, np.ndarray | jax.Array):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return str(jax.random.key_impl(x)), _leaf_key(jax.random.key_data(x))
        x = np.asarray(x)
        return x.shape, x.dtype.name, x.tobytes()
    return x
