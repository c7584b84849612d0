"""chain, named_chain, identity: transformations in sequence."""

from typing import Any

from ...core import kernels
from ...core.checks import Static
from ...core.leaves import Tree, cast_tree_like, widen_params, widen_tree
from ...core.state_check import wrong_state
from ...core.transformation import EmptyState, GradientTransformation, as_transformation, transformation
from ...core.value import show


@transformation
class identity(GradientTransformation):
    """Leaves the updates as they are.

    >>> identity().update({"w": 1.0}, EmptyState())[0]
    {'w': 1.0}
    """

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        return updates, state

    def as_kernel(self, state, params):
        return ()


@transformation
class chain(GradientTransformation):
    """Applies transformations one after another: u ← fₙ(… f₂(f₁(g))).

    The links get 16-bit leaves in float32. The result is cast once, at the end, to the dtype of the params (of the
    gradients if there are no params). The state is the tuple of the links' states. Extra keyword arguments reach
    every link.

    Args:
        transforms: gradient transformations, ours or any object with `init` and `update`; an empty chain is the
            identity.

    Raises TypeError for an argument that is not a transformation.

    >>> from functional_opt import clip, scale
    >>> tx = chain(clip(1.0), scale(-0.1))
    >>> tx
    chain(clip(1.0), scale(-0.1))
    >>> updates, state = tx.update({"w": 5.0}, tx.init({"w": 0.0}))
    >>> round(float(updates["w"]), 3)
    -0.1

    Differs from Optax in the dtype rule, and in allowing `chain()`.
    """

    in_turn = True
    transforms: tuple[GradientTransformation, ...] = ()

    def __init__(self, *args: Any, transforms: tuple = ()):
        links = (as_transformation(t, f"chain: argument {i}") for i, t in enumerate((*args, *transforms)))
        object.__setattr__(self, "transforms", tuple(links))

    def init(self, params):
        return tuple(t.init(params) for t in self.transforms)

    def update(self, updates, state, params=None, **extra):
        def pure(updates, state, params):
            return _in_turn(self.transforms, updates, state, params, extra)

        return kernels.step(self, pure, updates, state, params)

    def as_kernel(self, state, params):
        return kernels.operations_in_turn(self.transforms, state, params)

    def _state_class(self):
        return None  # a tuple, whose length `update` checks

    def __repr__(self):
        return f"chain({', '.join(map(show, self.transforms))})"


@transformation
class named_chain(GradientTransformation):
    """Applies named transformations one after another; the state is a dict by name.

    Args:
        args: pairs `(name, transformation)`; the names are strings, each used once.

    Raises ValueError for a name used twice, TypeError for an argument that is not such a pair.

    >>> from functional_opt import scale, trace
    >>> tx = named_chain(("momentum", trace(0.9)), ("lr", scale(-0.1)))
    >>> sorted(tx.init({"w": 0.0}))
    ['lr', 'momentum']
    """

    in_turn = True
    names: Static[tuple[str, ...]] = ()
    transforms: tuple[GradientTransformation, ...] = ()

    def __init__(self, *args: tuple[str, Any], names: tuple = (), transforms: tuple = ()):
        pairs = (*args, *zip(names, transforms, strict=True))
        for i, pair in enumerate(pairs):
            if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
                raise TypeError(f"named_chain: argument {i} must be a pair (name, transformation), got {pair!r}")
        names = tuple(name for name, _ in pairs)
        if len(set(names)) < len(names):
            raise ValueError(f"named_chain: names must differ, got {names}")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "transforms", tuple(as_transformation(t, f"named_chain: {n!r}") for n, t in pairs))

    def init(self, params):
        return {name: t.init(params) for name, t in zip(self.names, self.transforms, strict=True)}

    def update(self, updates, state, params=None, **extra):
        if not (isinstance(state, dict) and state.keys() == set(self.names)):
            raise ValueError(wrong_state("named_chain", f"a dict with the keys {self.names}", state))

        def pure(updates, state, params):
            states = tuple(state[name] for name in self.names)
            updates, states = _in_turn(self.transforms, updates, states, params, extra)
            return updates, dict(zip(self.names, states, strict=True))

        return kernels.step(self, pure, updates, state, params)

    def as_kernel(self, state, params):
        return kernels.operations_in_turn(self.transforms, tuple(state[name] for name in self.names), params)

    def _state_class(self):
        return None  # a dict, whose keys `update` checks

    def __repr__(self):
        pairs = zip(self.names, self.transforms, strict=True)
        return f"named_chain({', '.join(f'({name!r}, {show(t)})' for name, t in pairs)})"


def _in_turn(transforms: tuple, updates: Tree, states: Any, params: Tree, extra: dict) -> tuple[Tree, tuple]:
    if not (isinstance(states, tuple) and len(states) == len(transforms)):
        raise ValueError(wrong_state("chain", f"a tuple of {len(transforms)} states", states))
    like = updates if params is None else params
    updates, params = widen_tree(updates, "updates"), widen_params(params)
    new_states = []
    for t, state in zip(transforms, states, strict=True):
        updates, state = t.update(updates, state, params, **extra)
        new_states.append(state)
    return cast_tree_like(updates, like), tuple(new_states)
