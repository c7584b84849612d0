"""Pytrees of arrays: a multi-output map with None and dtype rules, slots, casts.

Errors here are raised while tracing and name the leaf by its path, as `['dense']['bias']`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

Tree = Any
"""A pytree; its leaves are arrays, or None where there is nothing."""

_FOREIGN = (int, float, complex, np.ndarray, np.generic)

MANY = 32
"""So many leaves are worth a rule that is traced once for those that are alike."""


def map_leaves(
    fn: Callable, updates: Tree, *slots: Tree, read: Sequence[Tree] = (), params: Tree = None, same_shape: bool = True
) -> Any:
    """Maps a rule on one leaf over whole trees, with as many results as the rule has.

    `fn(u, *slots, *read)` gives `(u, *slots)`, or just `u` where there are no slots. Around the rule,
    for every leaf:

    - None in `updates` means no update: the result is None and the slots stay as they are;
    - 16-bit values are widened to float32 before the rule runs;
    - what comes out is cast back: each slot to its dtype, `u` to that of `params` if given, else its own.

    The rule is a function of its arguments alone: it may run once for leaves that are alike.

    Raises ValueError or TypeError naming the first leaf that does not fit.

    >>> halve = lambda u, m: (u + m, m / 2)
    >>> grads, mu = {"w": jnp.ones(2), "b": None}, {"w": jnp.ones(2), "b": jnp.ones(1)}
    >>> u, mu = map_leaves(halve, grads, mu)
    >>> u["w"].tolist(), u["b"], mu["w"].tolist(), mu["b"].tolist()
    ([2.0, 2.0], None, [0.5, 0.5], [1.0])
    """
    n = 1 + len(slots)
    like = () if params is None else (params,)
    names = ("updates", *("the optimizer state" for _ in slots), *("params" for _ in (*read, *like)))
    treedef, rows = zip_leaves((updates, *slots, *read, *like), names, same_shape=same_shape)
    if len(rows) >= MANY and any(isinstance(row[0], core.Tracer) for row in rows):
        fn = jax.jit(fn)  # traced and lowered once for all leaves that are alike
    columns: list[list] = [[] for _ in range(n)]
    for i, row in enumerate(rows):
        if is_nothing(row[0]):
            results = (None, *row[1:n])
        else:
            _check_inexact(row[0], lambda i=i: _path(updates, i))
            try:
                results = fn(*map(widen, row[: n + len(read)]))
            except (TypeError, ValueError) as e:
                if same_shape or n == 1:
                    raise
                kept = [np.shape(x) for x in row[1:n]]
                raise ValueError(
                    f"updates{_path(updates, i)} has shape {np.shape(row[0])}, which the optimizer state there "
                    f"does not fit, of shapes {kept}; if that is of other params, start from tx.init(params): {e}"
                ) from e
            results = results if slots else (results,)
            targets = (row[-1] if like else row[0], *row[1:n])
            results = [cast_like(x, to) for x, to in zip(results, targets, strict=True)]
        for column, x in zip(columns, results, strict=True):
            column.append(x)
    trees = tuple(treedef.unflatten(c) for c in columns)
    return trees if slots else trees[0]


def zip_leaves(trees: Sequence[Tree], names: Sequence[str], same_shape: bool = True) -> tuple[Any, list[tuple]]:
    """The structure of the first tree, None counted as a leaf, and the leaves of all trees side by side.

    Where the first tree has None the others may have anything. Raises ValueError otherwise, naming the
    leaf, if a tree has another structure or (with `same_shape`) a leaf another shape.
    """
    first, *rest = trees
    leaves, treedef = jax.tree.flatten(first, is_leaf=is_nothing)
    columns: list[list] = [leaves]
    for tree, name in zip(rest, names[1:], strict=True):
        try:
            columns.append(treedef.flatten_up_to(tree))
        except (ValueError, TypeError) as e:
            raise ValueError(_mismatch(first, tree, names[0], name)) from e
    rows = list(zip(*columns, strict=True))
    for i, row in enumerate(rows):
        if is_nothing(row[0]):
            continue
        shape = np.shape(as_array(row[0], lambda i=i: names[0] + _path(first, i)))
        for x, name in zip(row[1:], names[1:], strict=True):
            if isinstance(x, str | bytes):  # which NumPy counts among scalars
                as_array(x, lambda i=i, name=name: name + _path(first, i))
            if x is None or not hasattr(x, "dtype") and not np.isscalar(x):
                what = "no leaf" if x is None else f"a {type(x).__name__}"
                where = _path(first, i) or "the root"
                raise ValueError(f"{name} has {what} at {where}, where {names[0]} has one of shape {shape}")
            if same_shape and np.shape(x) != shape:
                raise ValueError(f"{names[0]}{_path(first, i)} has shape {shape}, but {name} has {np.shape(x)} there")
    return treedef, rows


def is_nothing(x: Any) -> bool:
    """Whether a leaf of a gradient means "no update": None, or JAX's float0 of an integer input."""
    return x is None or getattr(x, "dtype", None) == jax.dtypes.float0


def is_inexact(x: Any) -> bool:
    """Whether an array or number is floating or complex, so that there can be a gradient of it."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def as_array(x: Any, where: Callable[[], str]) -> Any:
    """An array as it is, a Python number as one; TypeError for anything else."""
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return x
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError) as e:
        raise TypeError(f"{where()} must be an array, got {x!r} ({type(x).__name__})") from e


def _check_inexact(x: Any, path: Callable[[], str]) -> None:
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"updates{path()} has dtype {dtype}; a gradient must be floating or complex: "
            "differentiate a float, or give None for a leaf that is not trained"
        )


def paths(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """The path of every leaf, as `['dense']['bias']`."""
    return [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf)]


def _path(tree: Tree, i: int) -> str:
    return paths(tree, is_nothing)[i]


def _mismatch(first: Tree, second: Tree, first_name: str, second_name: str) -> str:
    """Says where two trees part: the first leaf that only one of them has."""
    a, b = paths(first, is_nothing), paths(second, is_nothing)
    shapes = dict(zip(b, map(np.shape, jax.tree.leaves(second, is_leaf=is_nothing)), strict=True))
    if missing := [p for p in b if p not in set(a)]:
        where = missing[0] or "the root"
        return f"{first_name} has no leaf at {where}; {second_name} has one of shape {shapes[missing[0]]}"
    if extra := [p for p in a if p not in set(b)]:
        return f"{first_name} has a leaf at {extra[0] or 'the root'}, where {second_name} has none"
    kinds = [jax.tree.structure(t, is_leaf=is_nothing) for t in (first, second)]
    return f"{first_name} and {second_name} are made of other containers: {kinds[0]} and {kinds[1]}"


# Dtypes


def widen(x: Any) -> Any:
    """A 16-bit (or smaller) float as float32, any other array as it is; a number, or NumPy's array, as JAX's."""
    dtype = jnp.result_type(x)
    if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4:
        return jnp.asarray(x, jnp.float32)
    return jnp.asarray(x) if isinstance(x, _FOREIGN) else x


def widen_tree(tree: Tree, name: str) -> Tree:
    """`widen` on every leaf. Raises TypeError, naming it, for a leaf that is no array."""
    return map_with_path(lambda path, x: x if is_nothing(x) else widen(as_array(x, lambda: name + path())), tree)


def widen_params(params: Tree) -> Tree:
    """`widen` on every array of the params. A leaf that is none, of a whole model, say, stays as it is."""
    return jax.tree.map(lambda x: widen(x) if hasattr(x, "dtype") and not is_nothing(x) else x, params)


def map_with_path(fn: Callable[[Callable[[], str], Any], Any], tree: Tree) -> Tree:
    """`jax.tree.map` of a function that also gets a way to find the leaf's path, for its errors."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten([fn(lambda i=i: paths(tree)[i], x) for i, x in enumerate(leaves)])


def cast_like(x: Any, like: Any) -> jax.Array:
    """`x` in the dtype of `like`."""
    return jnp.asarray(x, jnp.result_type(like))


def add(x: Any, u: Any) -> jax.Array:
    """`x + u` in the dtype of `x`, added in float32 where that has 16 bits."""
    return cast_like(widen(x) + widen(u), x)


def cast_tree_like(tree: Tree, like: Tree) -> Tree:
    """Every array in the dtype of its counterpart; trees that do not correspond are left as they are."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_nothing)
    try:
        targets = treedef.flatten_up_to(like)
    except (ValueError, TypeError):
        return tree
    return treedef.unflatten(
        [
            cast_like(x, to) if getattr(x, "dtype", None) != getattr(to, "dtype", None) and not is_nothing(x) else x
            for x, to in zip(leaves, targets, strict=True)
        ]
    )


def full_like(tree: Tree, fill: Any, dtype: Any = None, real: bool = False) -> Tree:
    """Slots for `tree`: leaves of its shapes, filled; what is stored for 16-bit leaves is float32.

    `dtype` stores real leaves otherwise. With `real` the slot of a complex leaf is real, as for |g|².

    >>> full_like({"w": jnp.ones(2, "bfloat16")}, 0.0)["w"].dtype, full_like(jnp.ones(2), 0.0, "bfloat16").dtype
    (dtype('float32'), dtype(bfloat16))
    """

    def leaf(path, x):
        x = as_array(x, lambda: "params" + path())
        own = jnp.result_type(x)
        if not jnp.issubdtype(own, jnp.inexact):
            own = jnp.dtype(jnp.float32)
        wide = jnp.finfo(own).dtype if real else own
        if not jnp.issubdtype(wide, jnp.complexfloating):
            wide = jnp.dtype(dtype) if dtype is not None else jnp.promote_types(wide, jnp.float32)
        return jnp.full_like(x, fill, dtype=wide)

    return map_with_path(leaf, tree)


def zeros_like(tree: Tree, dtype: Any = None, real: bool = False) -> Tree:
    """`full_like` with zeros."""
    return full_like(tree, 0, dtype, real)


def copy_of(tree: Tree, dtype: Any = None) -> Tree:
    """Slots that start as the leaves of `tree`, in buffers of their own; as zeros where these are only shapes."""

    def leaf(slot, x):
        return slot if isinstance(x, jax.ShapeDtypeStruct) else slot + cast_like(x, slot)

    return jax.tree.map(leaf, zeros_like(tree, dtype), tree)
