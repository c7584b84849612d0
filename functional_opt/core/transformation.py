"""The core type: a pure `(init, update)` pair over pytrees, which is also a value.

State is a `NamedTuple` with Optax's field names. A step is::

    updates, state = tx.update(grads, state, params)
    params = apply_updates(params, updates)
"""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, Self, cast

import jax
import jax.numpy as jnp

from . import kernels
from .leaves import Tree, cast_tree_like
from .ranges import Convert
from .state_check import CACHED, checks_state, state_class
from .value import Static, show, value

transformation = value
"""Decorates a subclass of `GradientTransformation`: a frozen dataclass, hyperparameters its leaves."""


class EmptyState(NamedTuple):
    """The state of a transformation that keeps none."""


def init_empty_state(params: Tree) -> EmptyState:
    """The `init` of a transformation that keeps no state."""
    del params
    return EmptyState()


class GradientTransformation:
    """A pure `(init, update)` pair over pytrees; `init, update = tx` unpacks it, and `tx[0]` is `init`.

    `GradientTransformation(init, update)` makes one from two functions. Classes that `@transformation`
    decorates are the usual way: their hyperparameters are leaves of the transformation itself.

    >>> def init(params):
    ...     return EmptyState()
    >>> def update(updates, state, params=None):
    ...     return jax.tree.map(jnp.negative, updates), state
    >>> flip = GradientTransformation(init, update)
    >>> updates, state = flip.update({"w": jnp.ones(2)}, flip.init(None))
    >>> updates["w"].tolist()
    [-1.0, -1.0]

    The class attributes and the methods after `update` have defaults. A class overrides those that apply to it, for
    `explain`, `describe`, `with_metrics`, `partition` and the kernels to read.

    Where a subclass's `init` makes a state of a class of its own (a NamedTuple, say), `update` raises ValueError for
    a state of any other class, such as that of another transformation.
    """

    preconditions = False
    """Whether updates have one size whatever the gradients': true with second moments, or of a sign."""
    clips = False
    """Whether it bounds the updates."""
    in_turn = False
    """Whether each transformation inside passes its updates to the next one."""
    stacks_matrices = False
    """Whether it reads leaves as matrices by a field `weight_dimension_numbers`, which labels may fill in."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for name in {"update", "as_kernel"} & vars(cls).keys():
            setattr(cls, name, checks_state(vars(cls)[name]))

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        return object.__new__(cast(type[Self], _Pair) if cls is GradientTransformation else cls)

    def __init__(self, init: Any = None, update: Any = None):
        """Nothing here: `_Pair` keeps the two functions, a subclass its fields."""

    def init(self, params: Tree) -> Any:
        """The state before the first step, for `params` or anything of their shapes and dtypes."""
        raise NotImplementedError

    def update(self, updates: Tree, state: Any, params: Tree = None, **extra) -> tuple[Tree, Any]:
        """One step: `(updates, state)`, to be added to the params and to be passed to the next step."""
        raise NotImplementedError

    def as_kernel(self, state: Any, params: Tree) -> tuple[kernels.KernelOp, ...] | None:
        """Returns the operations that do the same as `update`, in order; None if there are none for it."""
        return None

    def touched_leaves(self, params: Tree) -> Tree | None:
        """Returns a tree of bools: the leaves whose updates it may change. None stands for all that it is given."""
        return None

    def reported(self, state: Any) -> dict[str, jax.Array]:
        """Returns scalars of its state for `with_metrics` to report, by name."""
        return {}

    def stored_with(self, inner: "GradientTransformation") -> "GradientTransformation":
        """Returns a transformation whose state is stored as this one stores that of an `inner` one inside it."""
        return inner

    def resolved_for(self, params: Tree) -> "GradientTransformation":
        """Returns itself, with whatever depends on the params filled in."""
        return self

    def doubts(self, params: Tree) -> list[str]:
        """Returns for each leaf, None counted as one, a doubt about how it is read, or ""; [] for no doubt at all.

        "PATH" in a doubt stands for the leaf's path.
        """
        return []

    def _state_class(self) -> type | None:
        """The class that `update` holds its state to; None for anything."""
        return state_class(self)

    def __getstate__(self):
        """For pickle and copy: the fields, without what is remembered of them."""
        return {name: x for name, x in self.__dict__.items() if name != CACHED}

    def __iter__(self):
        return iter((self.init, self.update))

    def __getitem__(self, i):
        return (self.init, self.update)[i]


GradientTransformationExtraArgs = GradientTransformation
"""Optax's name for one that takes extra arguments; here all do."""

Params = Updates = OptState = Tree
TransformInitFn = Callable[[Params], OptState]
TransformUpdateFn = TransformUpdateExtraArgsFn = Callable[..., tuple[Updates, OptState]]


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@transformation
class _Pair(GradientTransformation):
    """Two functions; the dtypes of their state are held fixed, and they get the extra arguments they take."""

    init_fn: Static[Callable]
    update_fn: Static[Callable]

    def __init__(self, init: Any = None, update: Any = None):
        for name, fn in (("init", init), ("update", update)):
            if not callable(fn):
                raise TypeError(f"{name} must be a function, got {fn!r}")
        object.__setattr__(self, "init_fn", init)
        object.__setattr__(self, "update_fn", update)

    def init(self, params):
        return self.init_fn(params)

    def update(self, updates, state, params=None, **extra):
        taken = inspect.signature(self.update_fn).parameters
        kinds = [p.kind for p in taken.values()]
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            extra = {name: x for name, x in extra.items() if name in taken}
        takes_params = inspect.Parameter.VAR_POSITIONAL in kinds or sum(kind in _POSITIONAL for kind in kinds) > 2
        updates, new_state = self.update_fn(updates, state, *([params] if takes_params else []), **extra)
        return updates, cast_tree_like(new_state, state)

    def _state_class(self):
        return None  # two functions of somebody else's: `init` is not called but by the user

    def __repr__(self):
        return f"GradientTransformation({show(self.init_fn)}, {show(self.update_fn)})"


def as_transformation(tx: Any, name: str = "tx") -> GradientTransformation:
    """Ours as it is; anything else with `.init` and `.update` (an Optax transformation) wrapped."""
    if isinstance(tx, GradientTransformation):
        return tx
    if callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None)) and not isinstance(tx, type):
        return GradientTransformation(tx.init, tx.update)
    hint = f"; call it: {tx.__name__}(...)" if callable(tx) and hasattr(tx, "__name__") else ""
    raise TypeError(f"{name} must be a gradient transformation (init and update), got {tx!r}{hint}")


Transformation = Annotated[
    GradientTransformation, Convert(lambda name, x: as_transformation(x, name), "ours or any other")
]
"""A field or argument that holds a transformation; a foreign one is wrapped."""


def with_extra_args_support(tx: Any) -> Any:
    """The transformation as one that takes extra keyword arguments, which all of ours do; a foreign one is wrapped.

    >>> import optax
    >>> tx = with_extra_args_support(optax.scale(-1.0))
    >>> tx.update({"w": 1.0}, tx.init({"w": 0.0}), value=3.0)[0]
    {'w': -1.0}
    """
    return as_transformation(tx)


def needs_params(params: Tree, who: GradientTransformation) -> None:
    """Refuses a step without the params that a transformation reads."""
    if params is None:
        raise ValueError(f"{type(who).__name__} needs the params: call update(updates, state, params)")


def increment(count: jax.Array) -> jax.Array:
    """`count + 1`, staying at the largest number of its dtype.

    >>> int(increment(jnp.int32(2**31 - 1))) == 2**31 - 1
    True
    """
    if not hasattr(count, "dtype"):  # a tuple's method: the state is another one, without this field
        raise ValueError("the state has no step count: it is not the one that this transformation's init made")
    count = count if isinstance(count, jax.Array) else jnp.asarray(count)
    return jnp.where(count < count.dtype.type(jnp.iinfo(count.dtype).max), count + 1, count)


def zero_count() -> jax.Array:
    """A step count at its start: int32, shape ()."""
    return jnp.zeros([], jnp.int32)
