"""Pairs of a gradient and a variable: their form, and which gradient a variable may get."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..engine import eager
from ..variables.foreign import as_variable, is_variable
from ..variables.indexed_slices import IndexedSlices
from ..variables.variable import Variable

GradsAndVars = Sequence[tuple[Any, Any]]


def as_pairs(grads_and_vars: Iterable[Any]) -> list[tuple[Any, Variable]]:
    """Returns (gradient, variable) pairs, with other libraries' variables wrapped. Raises TypeError for non-pairs."""
    pairs = list(grads_and_vars)
    if not eager.are_pairs(pairs):
        for pair in pairs:
            if not (isinstance(pair, tuple | list) and len(pair) == 2):
                raise TypeError(f"grads_and_vars must hold (gradient, variable) pairs, got {pair!r}")
    if {type(v) for _, v in pairs} == {Variable}:
        return [(g, v) for g, v in pairs]
    for _, v in pairs:
        if not is_variable(v):
            raise TypeError(f"the second of each pair must be a Variable, got {v!r}")
    return [(g, as_variable(v)) for g, v in pairs]


def check_gradient(g: Any, v: Variable) -> None:
    """Raises an error for a gradient that does not have the shape of its variable, or cannot be a gradient of it."""
    if isinstance(g, IndexedSlices):
        rows = v.shape[:1] if g.dense_shape is None else g.dense_shape[:1]
        shape = rows + g.values.shape[1:]
    else:
        shape = np.shape(g)
    dtype = g.dtype if hasattr(g, "dtype") else np.asarray(g).dtype
    if isinstance(dtype, np.dtype) and dtype.kind in "USO":
        raise TypeError(f"the gradient of {v.name} must be an array, got {g!r} ({type(g).__name__})")
    if shape != v.shape:
        raise ValueError(f"the gradient of {v.name} has shape {shape}, the variable has {v.shape}")
    if not jnp.issubdtype(v.dtype, jnp.inexact):
        raise TypeError(f"{v.name} has dtype {v.dtype} and cannot be trained; leave it out, or make it of floats")
    if jnp.issubdtype(dtype, jnp.complexfloating) and not jnp.issubdtype(v.dtype, jnp.complexfloating):
        raise TypeError(
            f"the gradient of {v.name} is complex, but the variable has dtype {v.dtype}: a real variable has a real "
            "gradient. Take the real part, or make the variable complex"
        )
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"the gradient of {v.name} must be floating-point, got {dtype}")
    if isinstance(g, IndexedSlices) and v.constraint is not None:
        raise RuntimeError(f"Cannot use a constraint function on a sparse variable: {v.name}")
