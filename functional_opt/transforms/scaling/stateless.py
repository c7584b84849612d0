"""stateless, stateless_with_tree_map: transformations made from one function."""

from collections.abc import Callable

from ...core.checks import Static
from ...core.leaves import cast_tree_like, map_leaves
from ...core.transformation import EmptyState, GradientTransformation, transformation


@transformation
class stateless(GradientTransformation):
    """Applies a function to the trees of updates and params, without a state: u = f(g, w).

    Args:
        f: a function from the updates and the params (None if `update` got none) to new updates, which are cast to
            the dtypes of the params.

    >>> tx = stateless(lambda g, w: -0.1 * g)
    >>> updates, state = tx.update(10.0, tx.init(0.0))
    >>> updates
    -1.0
    """

    f: Static[Callable]

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        return cast_tree_like(self.f(updates, params), updates if params is None else params), state


@transformation
class stateless_with_tree_map(GradientTransformation):
    """Applies a function leaf by leaf, without a state: u = f(g, w).

    Args:
        f: a function from a leaf of the updates and one of the params (None if `update` got none) to the new update.
            It gets 16-bit leaves in float32. It is not called for leaves without a gradient.

    >>> tx = stateless_with_tree_map(lambda g, w: g + 0.5 * w)
    >>> tx.update({"w": 1.0}, tx.init({"w": 2.0}), {"w": 2.0})[0]["w"].item()
    2.0
    """

    f: Static[Callable]

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        if params is None:
            return map_leaves(lambda g: self.f(g, None), updates), state
        return map_leaves(self.f, updates, read=(params,), params=params), state
