"""incremental_update, periodic_update: params that follow others, as target networks do."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .leaves import Tree, is_nothing, narrow, widen, zip_leaves


def incremental_update(new_tensors: Tree, old_tensors: Tree, step_size: Any) -> Tree:
    """step_size · new + (1 − step_size) · old, leaf by leaf: one step of a running mean.

    Arithmetic is in float32; the result has the dtypes of `old_tensors`. Where `new_tensors` is None the old
    leaf stays.

    Args:
        new_tensors, old_tensors: trees of one structure.
        step_size: a number in [0, 1], small to change slowly.

    Raises ValueError, naming the leaf, where the trees differ.

    Polyak & Juditsky 1992, SIAM J. Control Optim. 30(4).

    >>> incremental_update({"w": 2.0}, {"w": 1.0}, 0.25)["w"].item()
    1.25
    """
    return _follow(lambda new, old: step_size * new + (1 - step_size) * old, new_tensors, old_tensors)


def periodic_update(new_tensors: Tree, old_tensors: Tree, steps: Any, update_period: Any) -> Tree:
    """The new tensors at every `update_period`-th step (steps % update_period == 0), the old ones otherwise.

    Args:
        new_tensors, old_tensors: as in `incremental_update`.
        steps: the step count.
        update_period: a whole number ≥ 1.

    Grill et al. 2020, arXiv:2006.07733.

    >>> [periodic_update({"w": 2.0}, {"w": 1.0}, step, 2)["w"].item() for step in (0, 1, 2)]
    [2.0, 1.0, 2.0]
    """
    now = jnp.asarray(steps) % update_period == 0
    return _follow(lambda new, old: jnp.where(now, new, old), new_tensors, old_tensors)


def _follow(rule: Callable, new_tensors: Tree, old_tensors: Tree) -> Tree:
    treedef, rows = zip_leaves((new_tensors, old_tensors), ("new_tensors", "old_tensors"))
    return treedef.unflatten([y if is_nothing(x) else narrow(rule(widen(x), widen(y)), y) for x, y in rows])
