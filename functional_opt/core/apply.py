"""apply_updates, incremental_update, periodic_update: compute new params from updates or from other params."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from . import kernels
from .leaves import Tree, add, cast_like, is_nothing, paths, widen, zip_leaves


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """Returns `params + updates`, leaf by leaf, in the dtype of the params.

    A leaf whose update is None stays as it is. 16-bit leaves are added in float32 and rounded once.
    Raises ValueError, naming the leaf, if the trees or the shapes of two leaves differ, and TypeError if the
    update of a real leaf is complex.

    >>> apply_updates({"w": jnp.ones(2), "b": jnp.zeros(1)}, {"w": jnp.full(2, 0.5), "b": None})["w"].tolist()
    [1.5, 1.5]
    """
    treedef, rows = zip_leaves((updates, params), ("updates", "params"))
    for i, (u, p) in enumerate(rows):
        if not is_nothing(u) and jnp.iscomplexobj(u) and not jnp.iscomplexobj(p):
            path = paths(updates, is_nothing)[i]
            raise TypeError(f"updates{path} is complex, but params has {jnp.result_type(p)} there")
    return treedef.unflatten([p if is_nothing(u) else _added(p, u) for u, p in rows])


def _added(p: Any, u: Any) -> Any:
    known = kernels.known_sum(p, u)  # a native step has already computed the new params
    return add(p, u) if known is None else known


def incremental_update(new_tensors: Tree, old_tensors: Tree, step_size: Any) -> Tree:
    """Returns step_size · new + (1 − step_size) · old, leaf by leaf: one step of a running mean.

    Arithmetic is in float32; the result has the dtypes of `old_tensors`. Where `new_tensors` is None, the old
    leaf is kept.

    Args:
        new_tensors, old_tensors: trees with the same structure.
        step_size: a number in [0, 1]; the smaller it is, the slower the change.

    Raises ValueError, naming the leaf, if the trees differ, or for a step size, if it is known, outside [0, 1].

    Polyak & Juditsky 1992, SIAM J. Control Optim. 30(4).

    >>> incremental_update({"w": 2.0}, {"w": 1.0}, 0.25)["w"].item()
    1.25
    """
    if isinstance(step_size, int | float) and not 0 <= step_size <= 1:
        raise ValueError(f"step_size must be in [0, 1], got {step_size}")
    return _follow(lambda new, old: step_size * new + (1 - step_size) * old, new_tensors, old_tensors)


def periodic_update(new_tensors: Tree, old_tensors: Tree, steps: Any, update_period: Any) -> Tree:
    """Returns the new tensors at every `update_period`-th step (steps % update_period == 0), else the old ones.

    Args:
        new_tensors, old_tensors: as in `incremental_update`.
        steps: the step count.
        update_period: an integer ≥ 1.

    Grill et al. 2020, arXiv:2006.07733.

    >>> [periodic_update({"w": 2.0}, {"w": 1.0}, step, 2)["w"].item() for step in (0, 1, 2)]
    [2.0, 1.0, 2.0]
    """
    if isinstance(update_period, int | float) and not (update_period >= 1 and update_period % 1 == 0):
        raise ValueError(f"update_period must be a whole number of at least 1, got {update_period}")
    now = jnp.asarray(steps) % update_period == 0
    return _follow(lambda new, old: jnp.where(now, new, old), new_tensors, old_tensors)


def _follow(rule: Callable, new_tensors: Tree, old_tensors: Tree) -> Tree:
    treedef, rows = zip_leaves((new_tensors, old_tensors), ("new_tensors", "old_tensors"))
    return treedef.unflatten([y if is_nothing(x) else cast_like(rule(widen(x), widen(y)), y) for x, y in rows])
