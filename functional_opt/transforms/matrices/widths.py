"""The shapes of a base model, beside which a model of another width is so many times wider."""

from typing import Annotated, Any

import jax
import numpy as np

from ...core.leaves import Tree, is_nothing
from ...core.paths import Frozen, MaskedNode, PathRules, resolve_values
from ...core.ranges import Convert
from ...core.schedule import Schedule
from ...core.transformation import GradientTransformation


def are_whole(x: Any) -> bool:
    return type(x) is tuple and all(type(n) is int for n in x)


def _is_shape(x: Any) -> bool:
    return are_whole(x) and all(n >= 0 for n in x)


def _shape(name: str, x: Any) -> tuple[int, ...] | None:
    if x is None or _is_shape(x):
        return x
    if hasattr(x, "shape"):
        return tuple(x.shape)
    if np.ndim(x) == 0 and isinstance(x, float | int):
        return ()
    raise TypeError(f"{name} must be an array or a shape such as (64, 64), got {x!r}")


def _shapes(name: str, x: Any) -> Any:
    """Converts a tree of arrays or shapes to one of shapes, and path rules to rules with shapes."""
    if isinstance(x, dict) and any("*" in k for k in x if isinstance(k, str)):
        x = PathRules(x)
    if isinstance(x, PathRules):
        return PathRules({pattern: _shape(f"{name}[{pattern!r}]", v) for pattern, v in x.rules})
    if isinstance(x, Frozen):
        return x
    refused = GradientTransformation | Schedule  # pytrees, but not of arrays
    leaves, treedef = jax.tree.flatten(x, is_leaf=lambda n: _is_shape(n) or isinstance(n, refused))
    others = [isinstance(n, str) or callable(n) and not isinstance(n, refused) for n in leaves]  # a model's functions
    shapes = (None if other else _shape(name, n) for n, other in zip(leaves, others, strict=True))
    return Frozen(tuple(shapes), treedef)


BaseParams = Annotated[Any, Convert(_shapes, "tree of arrays or shapes, or path rules")]
"""The params of a base model: a tree with their shapes, or path rules with shapes and None for a leaf's own shape."""


def base_shapes(base_params: Any, tree: Tree) -> list[tuple[int, ...] | None]:
    """Returns the shape in the base model of every leaf of a tree (None counts as a leaf), also behind a mask."""
    if isinstance(base_params, PathRules):
        return [shape for shape in base_params.of_each(tree) if not isinstance(shape, MaskedNode)]
    resolve_values("base_params", base_params, tree)  # raises a clear error for a tree of another structure
    parts = zip(base_params.leaves, base_params.treedef.flatten_up_to(tree), strict=True)
    return [shape for shape, part in parts for _ in jax.tree.leaves(part, is_leaf=is_nothing)]


def times_wider(path: str, shape: tuple[int, ...], base: tuple[int, ...] | None) -> list[float]:
    """Returns how many times longer each axis of a leaf is than in the base model."""
    base = shape if base is None else base
    if len(base) != len(shape):
        raise ValueError(f"params{path} has shape {shape}, but base_params {base}: the axes must be as many")
    if any(b == 0 != n for n, b in zip(shape, base, strict=True)):
        raise ValueError(
            f"params{path} has shape {shape}, the base model {base}: an axis of length 0 cannot be widened"
        )
    return [n / b if n != b else 1.0 for n, b in zip(shape, base, strict=True)]
