"""The form in which an array is stored, such as the data of a key of `jax.random`, and checksums."""

import functools
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

DTYPES = {
    name: np.dtype(getattr(jnp, name, name))
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "int4", "uint4"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    )
}
"""The dtypes that arrays may have, by name."""
IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")
"""The kinds of keys of `jax.random`, by name."""


class Form(NamedTuple):
    """What an array is stored as: its shape, its dtype's name, the kind of a typed key, whether its type is weak."""

    shape: tuple[int, ...]
    dtype: str
    key: str | None = None
    weak: bool = False


def is_stored(x: Any) -> bool:
    """Returns whether a leaf is an array or a number; functions in a model, for example, are not stored."""
    return (hasattr(x, "shape") and hasattr(x, "dtype")) or isinstance(x, bool | int | float | complex)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def form_of(x: Any) -> Form:
    """Returns the form in which an array, a number or anything with a shape and a dtype is stored.

    >>> form_of(jax.random.key(0))
    Form(shape=(2,), dtype='uint32', key='threefry2x32', weak=False)
    >>> form_of(0.5)
    Form(shape=(), dtype='float32', key=None, weak=True)
    """
    if not hasattr(x, "dtype"):
        x = jnp.asarray(x)
    if _is_key(x):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
        return Form(tuple(data.shape), data.dtype.name, _implementation(x))
    weak = bool(getattr(x, "weak_type", False)) and x.shape == ()
    return Form(tuple(x.shape), np.dtype(x.dtype).name, None, weak)


def _implementation(x: Any) -> str:
    if isinstance(x, jax.Array):
        return str(jax.random.key_impl(x))
    kinds = {name: jax.eval_shape(functools.partial(jax.random.key, 0, impl=name)).dtype for name in IMPLEMENTATIONS}
    return next(name for name, dtype in kinds.items() if dtype == x.dtype)


def to_stored(x: Any, name: str) -> Any:
    """Returns the array to store, JAX's arrays as they are. Raises TypeError or ValueError, naming the array."""
    if isinstance(x, core.Tracer):
        raise TypeError(f"{name} is a tracer, so its value is not known; call this outside of jit, vmap and grad")
    if isinstance(x, jax.ShapeDtypeStruct):
        raise TypeError(f"{name} has a shape and a dtype but no value; pass arrays")
    if getattr(x, "is_deleted", bool)():
        raise ValueError(f"{name} has been deleted: a step that donates its arguments took it; pass what it returned")
    if not hasattr(x, "dtype"):
        return jnp.asarray(x)
    if _is_key(x):
        return jax.random.key_data(x)
    if DTYPES.get(np.dtype(x.dtype).name) is None:
        raise TypeError(f"{name} has dtype {x.dtype}, which cannot be stored; the dtypes are {', '.join(DTYPES)}")
    return x if isinstance(x, jax.Array) else np.asarray(x, np.dtype(x.dtype).newbyteorder("="))


def from_stored(x: Any, form: Form) -> Any:
    """Returns the array that was stored, one of JAX's in buffers of its own."""
    if form.key is not None:
        return jax.random.wrap_key_data(jnp.asarray(x), impl=form.key)
    if form.weak:
        return jnp.asarray(np.asarray(x).item())
    return x if isinstance(x, jax.Array) else jnp.array(x)


def bytes_of(x: Any) -> np.ndarray:
    """Returns the bytes of an array, as an array of uint8 on the host."""
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def checksum_of(x: Any) -> str | None:
    """Returns the CRC-32 of an array's bytes; None for an array of which this process has only a part.

    >>> checksum_of(np.arange(3, dtype="int8"))
    'crc32:0854897f'
    """
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return None
    return f"crc32:{zlib.crc32(bytes_of(x).data):08x}"


def checksum_of_text(text: str) -> str:
    """Returns the CRC-32 of a text in UTF-8."""
    return f"crc32:{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"
