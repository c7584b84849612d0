"""Functions on pytrees of arrays: a map with several outputs and with rules for None and dtypes, slots, and casts.

Errors here are raised while tracing and name the leaf by its path, such as `['dense']['bias']`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

Tree = Any
"""A pytree whose leaves are arrays, or None for no value."""

_FOREIGN = (int, float, complex, np.ndarray, np.generic)

MANY = 32
"""From this number of leaves on, it pays to trace a rule only once for leaves that are alike."""


def map_leaves(
    fn: Callable, updates: Tree, *slots: Tree, read: Sequence[Tree] = (), params: Tree = None, same_shape: bool = True
) -> Any:
    """Maps a rule for one leaf over trees; returns as many trees as the rule has results.

    `fn(u, *slots, *read)` returns `(u, *slots)`, or just `u` if there are no slots. For every leaf:

    - None in `updates` means no update: the result is None and the slots stay as they are;
    - 16-bit values are widened to float32 before the rule runs;
    - results are cast back: each slot to its dtype, `u` to that of `params` if given, else to its own.

    The rule must depend on its arguments only: it may be traced once for several leaves that are alike.

    Raises ValueError or TypeError, naming the first leaf that does not fit.

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
                raise of_other_shapes(updates, i, row[1:n], e) from e
            results = results if slots else (results,)
            targets = (row[-1] if like else row[0], *row[1:n])
            for x, to, name in zip(results, targets, ("params", *names[1:n]), strict=True):
                if _is_complex(x) and not _is_complex(to):
                    raise _complex_for_real("updates", updates, i, name, to)
            results = [cast_like(x, to) for x, to in zip(results, targets, strict=True)]
        for column, x in zip(columns, results, strict=True):
            column.append(x)
    trees = tuple(treedef.unflatten(c) for c in columns)
    return trees if slots else trees[0]


def zip_leaves(trees: Sequence[Tree], names: Sequence[str], same_shape: bool = True) -> tuple[Any, list[tuple]]:
    """Returns the structure of the first tree (None counts as a leaf), and the leaves of all trees side by side.

    Where the first tree has None, the others may have anything. Otherwise raises ValueError, naming the leaf, if
    the structures of two trees or (with `same_shape`) the shapes of two leaves differ.
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
            if isinstance(x, str | bytes):  # NumPy counts these as scalars
                as_array(x, lambda i=i, name=name: name + _path(first, i))
            if x is None or not hasattr(x, "dtype") and not np.isscalar(x):
                what = "no leaf" if x is None else f"a {type(x).__name__}"
                where = _path(first, i) or "the root"
                raise ValueError(f"{name} has {what} at {where}, where {names[0]} has one of shape {shape}")
            if same_shape and np.shape(x) != shape:
                raise ValueError(f"{names[0]}{_path(first, i)} has shape {shape}, but {name} has {np.shape(x)} there")
    return treedef, rows


def check_leaves(updates: Tree, params: Tree) -> None:
    """Raises an error that names the leaf if trees or shapes differ, or if a real param has a complex update."""
    _, rows = zip_leaves((updates, params), ("updates", "params"))
    for i, (u, w) in enumerate(rows):
        if _is_complex(u) and not _is_complex(w):
            raise _complex_for_real("updates", updates, i, "params", w)


def of_other_shapes(updates: Tree, i: int, slots: Sequence[Any], e: Exception) -> ValueError:
    """Returns the error for a leaf whose slots were made for another shape, which made a rule fail with `e`."""
    return ValueError(
        f"updates{_path(updates, i)} has shape {np.shape(jax.tree.leaves(updates, is_leaf=is_nothing)[i])}, but the "
        f"optimizer state has shapes {[np.shape(x) for x in slots]} there; if that state was made for other params, "
        f"start from tx.init(params): {e}"
    )


def _complex_for_real(first_name: str, first: Tree, i: int, name: str, real: Any) -> TypeError:
    """Returns the error for a complex leaf where `name`, such as the params or the state, has a real one."""
    return TypeError(
        f"{first_name}{_path(first, i)} is complex, but {name} has {jnp.result_type(real)} there: a real param has a "
        "real gradient. Take the real part, or make the param complex and start from tx.init(params)"
    )


def _is_complex(x: Any) -> bool:
    return getattr(getattr(x, "dtype", None), "kind", "") == "c" or isinstance(x, complex)


def is_nothing(x: Any) -> bool:
    """Returns whether a leaf of a gradient means "no update": None, or JAX's float0 for an integer input."""
    return x is None or getattr(x, "dtype", None) == jax.dtypes.float0


def is_inexact(x: Any) -> bool:
    """Returns whether an array or number is floating or complex, so that it can have a gradient."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def as_array(x: Any, where: Callable[[], str]) -> Any:
    """Returns an array as it is and a Python number as an array; raises TypeError for anything else."""
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return x
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError) as e:
        hint = "; leave it out, as by equinox.filter(model, equinox.is_inexact_array)" if callable(x) else ""
        raise TypeError(f"{where()} must be an array, got {x!r} ({type(x).__name__}){hint}") from e


def _check_inexact(x: Any, path: Callable[[], str]) -> None:
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"updates{path()} has dtype {dtype}; a gradient must be floating or complex: "
            "differentiate a float, or give None for a leaf that is not trained"
        )


def paths(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """Returns the path of every leaf, such as `['dense']['bias']`."""
    return [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf)]


def _path(tree: Tree, i: int) -> str:
    return paths(tree, is_nothing)[i]


def _mismatch(first: Tree, second: Tree, first_name: str, second_name: str) -> str:
    """Describes where two trees differ: the first leaf that only one of them has."""
    a, b = paths(first, is_nothing), paths(second, is_nothing)
    shapes = dict(zip(b, map(np.shape, jax.tree.leaves(second, is_leaf=is_nothing)), strict=True))
    extra = [p for p in a if p not in set(b)]
    if missing := [p for p in b if p not in set(a)]:
        where = missing[0] or "the root"
        others = (
            f"; {first_name} has a leaf at {extra[0] or 'the root'}, where {second_name} has none" if extra else ""
        )
        if type(first) is tuple and len(first) == 2 and type(second) is not tuple:
            others += ". If this is what update returned, pass the first of the two, the updates"
        return f"{first_name} has no leaf at {where}; {second_name} has one of shape {shapes[missing[0]]}{others}"
    if extra:
        return f"{first_name} has a leaf at {extra[0] or 'the root'}, where {second_name} has none"
    kinds = [jax.tree.structure(t, is_leaf=is_nothing) for t in (first, second)]
    return f"{first_name} and {second_name} have different containers: {kinds[0]} and {kinds[1]}"


# Dtypes


def widen(x: Any) -> Any:
    """Widens a float of at most 16 bits to float32, and makes a number or a NumPy array one of JAX's."""
    dtype = jnp.result_type(x)
    if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4:
        return jnp.asarray(x, jnp.float32)
    return jnp.asarray(x) if isinstance(x, _FOREIGN) else x


def widen_tree(tree: Tree, name: str) -> Tree:
    """Applies `widen` to every leaf. Raises TypeError, naming the leaf, for one that is not an array."""
    return map_with_path(lambda path, x: x if is_nothing(x) else widen(as_array(x, lambda: name + path())), tree)


def widen_params(params: Tree) -> Tree:
    """Applies `widen` to every array of the params. Other leaves, such as functions in a model, stay as they are."""
    return jax.tree.map(lambda x: widen(x) if hasattr(x, "dtype") and not is_nothing(x) else x, params)


def map_with_path(fn: Callable[[Callable[[], str], Any], Any], tree: Tree) -> Tree:
    """Maps a function as `jax.tree.map` does; the function also gets one that returns the leaf's path, for errors."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten([fn(lambda i=i: paths(tree)[i], x) for i, x in enumerate(leaves)])


def cast_like(x: Any, like: Any) -> jax.Array:
    """Returns `x` in the dtype of `like`."""
    return jnp.asarray(x, jnp.result_type(like))


def add(x: Any, u: Any) -> jax.Array:
    """Returns `x + u` in the dtype of `x`; 16-bit values are added in float32."""
    return cast_like(widen(x) + widen(u), x)


def as_updates(new: Tree, updates: Tree, params: Tree) -> Tree:
    """Returns `new` as the updates of `params`: in the dtypes of these, and None where `updates` has None."""
    return map_leaves(lambda _, u: u, updates, read=(new,), params=params)


def cast_tree_like(tree: Tree, like: Tree, names: tuple[str, str] = ("updates", "params")) -> Tree:
    """Casts every array to the dtype of its counterpart; returns a tree of another structure as it is.

    Raises TypeError, naming the leaf, for a complex array whose counterpart is real.
    """
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_nothing)
    try:
        targets = treedef.flatten_up_to(like)
    except (ValueError, TypeError):
        return tree
    for i, (x, to) in enumerate(zip(leaves, targets, strict=True)):
        if _is_complex(x) and hasattr(to, "dtype") and not _is_complex(to):
            raise _complex_for_real(names[0], tree, i, names[1], to)
    return treedef.unflatten(
        [
            cast_like(x, to) if getattr(x, "dtype", None) != getattr(to, "dtype", None) and not is_nothing(x) else x
            for x, to in zip(leaves, targets, strict=True)
        ]
    )


def full_like(tree: Tree, fill: Any, dtype: Any = None, real: bool = False) -> Tree:
    """Returns slots for `tree`: leaves of its shapes, filled with a value; slots for 16-bit leaves are float32.

    `dtype` sets another dtype for real slots. With `real`, the slot of a complex leaf is real, as for |g|².

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
    """Returns `full_like(tree, 0, ...)`."""
    return full_like(tree, 0, dtype, real)


def copy_of(tree: Tree, dtype: Any = None) -> Tree:
    """Returns slots that start as copies of the leaves of `tree`, in their own buffers; zeros for mere shapes."""

    def leaf(slot, x):
        return slot if isinstance(x, jax.ShapeDtypeStruct) else slot + cast_like(x, slot)

    return jax.tree.map(leaf, zeros_like(tree, dtype), tree)
