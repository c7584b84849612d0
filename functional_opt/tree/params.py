"""map_params: applies a function to all parts of a state that are shaped like the params."""

from collections.abc import Callable
from typing import Any

import jax

from ..core.leaves import Tree
from ..core.paths import AllParams, MaskedNode


def map_params(
    initable: Any,
    f: Callable,
    state: Tree,
    /,
    *rest: Tree,
    transform_non_params: Callable | None = None,
    is_leaf: Callable | None = None,
) -> Tree:
    """Applies `f` to every leaf of a state that stands for a param: moments, traces, averages, not counts.

    Args:
        initable: the transformation that made the state, or its `init`.
        f: `f(leaf, *leaves of rest)`.
        state: the state.
        rest: trees with the structure of the params, such as their shardings.
        transform_non_params: a function for the other leaves; they stay as they are if it is None.
        is_leaf: as in `jax.tree.map`. Leaves that a mask leaves out stay `MaskedNode()`, and None stays None, unless
            it returns True for them.

    >>> from functional_opt import adam
    >>> state = adam(0.1).init({"w": 1.0})
    >>> map_params(adam(0.1), lambda _, spec: spec, state, {"w": "sharded"}, transform_non_params=lambda _: None)[0]
    ScaleByAdamState(count=None, mu={'w': 'sharded'}, nu={'w': 'sharded'})
    """
    places = getattr(initable, "init", initable)(AllParams())

    def given(x):
        return is_leaf is not None and is_leaf(x)

    def nothing(x):
        return x is None or isinstance(x, MaskedNode)

    def leaf(x, *others):
        return x if nothing(x) and not given(x) else f(x, *others)

    def part(place, x):
        if isinstance(place, AllParams):
            return jax.tree.map(leaf, x, *rest, is_leaf=lambda x: nothing(x) or given(x))
        return x if transform_non_params is None else jax.tree.map(transform_non_params, x)

    return jax.tree.map(part, places, state, is_leaf=lambda x: isinstance(x, AllParams))
