"""The core type: a pure `(init, update)` pair over pytrees, which is also a value.

State is a `NamedTuple` with Optax's field names. A step is::

    updates, state = tx.update(grads, state, params)
    params = apply_updates(params, updates)
"""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, Self, cast

import jax
import jax.numpy as jnp

from . import kernels
from .checks import Static
from .leaves import Tree, cast_tree_like
from .ranges import Convert
from .sharding import vary_like
from .state_check import CACHED, checks_state, state_class
from .value import show, value

transformation = value
"""Makes a subclass of `GradientTransformation` a frozen dataclass and a pytree of its hyperparameters."""


class EmptyState(NamedTuple):
    """The state of a transformation that keeps no state."""


def init_empty_state(params: Tree) -> EmptyState:
    """Returns `EmptyState()`; the `init` of a transformation that keeps no state."""
    del params
    return EmptyState()


class GradientTransformation:
    """A pure `(init, update)` pair over pytrees; `init, update = tx` unpacks it, and `tx[0]` is `init`.

    `GradientTransformation(init, update)` makes one from two functions. The usual way is a class decorated with
    `@transformation`, whose hyperparameters are leaves of the transformation itself.

    >>> def init(params):
    ...     return EmptyState()
    >>> def update(updates, state, params=None):
    ...     return jax.tree.map(jnp.negative, updates), state
    >>> flip = GradientTransformation(init, update)
    >>> updates, state = flip.update({"w": jnp.ones(2)}, flip.init(None))
    >>> updates["w"].tolist()
    [-1.0, -1.0]

    The class attributes and the methods after `update` have defaults. A subclass overrides those that apply to it;
    `explain`, `describe`, `with_metrics`, `partition` and the kernels read them.

    If a subclass's `init` returns a class of its own (a NamedTuple, say), `update` raises ValueError for a state of
    any other class, such as another transformation's.
    """

    preconditions = False
    """True if the size of the updates does not depend on that of the gradients, as with second moments or signs."""
    clips = False
    """True if it bounds the updates."""
    in_turn = False
    """True if each inner transformation passes its updates to the next one."""
    stacks_matrices = False
    """True if a field `weight_dimension_numbers`, which labels may fill in, says how it reads leaves as matrices."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for name, wrap in (("init", _varying), ("update", _kept_varying)):
            if name in vars(cls):
                setattr(cls, name, wrap(vars(cls)[name]))
        for name in {"update", "as_kernel"} & vars(cls).keys():
            setattr(cls, name, checks_state(vars(cls)[name]))

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        return object.__new__(cast(type[Self], _Pair) if cls is GradientTransformation else cls)

    def __init__(self, init: Any = None, update: Any = None):
        """Does nothing: `_Pair` stores the two functions, and a subclass stores its fields."""

    def init(self, params: Tree) -> Any:
        """Returns the state before the first step, for `params` or anything with their shapes and dtypes."""
        raise NotImplementedError

    def update(self, updates: Tree, state: Any, params: Tree = None, **extra) -> tuple[Tree, Any]:
        """Takes one step. Returns the updates to add to the params, and the state for the next step."""
        raise NotImplementedError

    def as_kernel(self, state: Any, params: Tree) -> tuple[kernels.KernelOp, ...] | None:
        """Returns kernel operations that are equivalent to `update`, in order; None if there are none."""
        return None

    def touched_leaves(self, params: Tree) -> Tree | None:
        """Returns a tree of bools, True for leaves whose updates it may change; None means all that it is given."""
        return None

    def reported(self, state: Any) -> dict[str, jax.Array]:
        """Returns scalars from its state, by name, for `with_metrics` to report."""
        return {}

    def stored_with(self, inner: "GradientTransformation") -> "GradientTransformation":
        """Returns a variant of `inner` whose state has the form in which this transformation stores it."""
        return inner

    def resolved_for(self, params: Tree) -> "GradientTransformation":
        """Returns itself, with everything that depends on the params filled in."""
        return self

    def doubts(self, params: Tree) -> list[str]:
        """Returns a doubt about how each leaf is read, or "" (None counts as a leaf); [] if there are no doubts.

        "PATH" in a doubt stands for the leaf's path.
        """
        return []

    def _state_class(self) -> type | None:
        """Returns the class that `update` requires of its state; None if it accepts any."""
        return state_class(self)

    def __getstate__(self):
        """Returns the fields for pickle and copy, without the cached class of the state."""
        return {name: x for name, x in self.__dict__.items() if name != CACHED}

    def __iter__(self):
        return iter((self.init, self.update))

    def __getitem__(self, i):
        return (self.init, self.update)[i]


GradientTransformationExtraArgs = GradientTransformation
"""Optax's name for a transformation that takes extra arguments; here all of them do."""

Params = Updates = OptState = Tree
TransformInitFn = Callable[[Params], OptState]
TransformUpdateFn = TransformUpdateExtraArgsFn = Callable[..., tuple[Updates, OptState]]


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _varying(init: Callable) -> Callable:
    """Wraps `init` so that inside `shard_map` counts and flags differ among the devices if the params do.

    Each device then has a state of its own, as in local SGD, and a loop may carry it.
    """

    @functools.wraps(init)
    def varying(self, params):
        return vary_like(init(self, params), params)

    return varying


def _kept_varying(update: Callable) -> Callable:
    """Wraps `update` so that what differs among the devices of a `shard_map` in a state still may in the next one."""

    @functools.wraps(update)
    def kept(self, updates, state, *args, **extra):
        result = update(self, updates, state, *args, **extra)
        if not jax.sharding.get_abstract_mesh().manual_axes:
            return result
        updates, new = result
        if jax.tree.structure(new) != jax.tree.structure(state):
            return result
        return updates, jax.tree.map(vary_like, new, state)

    return kept


@transformation
class _Pair(GradientTransformation):
    """A transformation made of two functions. Keeps their state's dtypes and passes the extra arguments they take."""

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
        return updates, cast_tree_like(new_state, state, ("the new state", "the state"))

    def _state_class(self):
        return None  # the functions are foreign: only the user calls `init`

    def __repr__(self):
        return f"GradientTransformation({show(self.init_fn)}, {show(self.update_fn)})"


def as_transformation(tx: Any, name: str = "tx") -> GradientTransformation:
    """Returns a transformation of ours as it is; wraps anything else with `.init` and `.update`, such as Optax's."""
    if isinstance(tx, GradientTransformation):
        return tx
    if callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None)) and not isinstance(tx, type):
        return GradientTransformation(tx.init, tx.update)
    hint = f"; call it: {tx.__name__}(...)" if callable(tx) and hasattr(tx, "__name__") else ""
    if isinstance(tx, list | tuple) and tx and all(hasattr(t, "update") for t in tx):
        hint = "; make one of several: chain(*transformations)"
    raise TypeError(f"{name} must be a gradient transformation (init and update), got {tx!r}{hint}")


Transformation = Annotated[
    GradientTransformation, Convert(lambda name, x: as_transformation(x, name), "of this library or any other")
]
"""Annotates a field or argument that holds a transformation; a foreign one is wrapped."""


def with_extra_args_support(tx: Any) -> Any:
    """Returns a transformation that takes extra keyword arguments. All of ours do; a foreign one is wrapped.

    >>> import optax
    >>> tx = with_extra_args_support(optax.scale(-1.0))
    >>> tx.update({"w": 1.0}, tx.init({"w": 0.0}), value=3.0)[0]
    {'w': -1.0}
    """
    return as_transformation(tx)


def needs_params(params: Tree, who: GradientTransformation) -> None:
    """Raises ValueError if a transformation that reads the params is called without them."""
    if params is None:
        raise ValueError(f"{type(who).__name__} needs the params: call update(updates, state, params)")


def needs_value(value: Any, who: GradientTransformation) -> Any:
    """Returns the loss. Raises ValueError if a transformation that reads it gets none, or more than one number."""
    if value is None:
        raise ValueError(f"{type(who).__name__} needs the loss: call update(updates, state, params, value=loss)")
    if jnp.shape(value) != ():
        raise ValueError(
            f"value must be the loss, a scalar, got shape {jnp.shape(value)}: take the mean over the batch"
        )
    return value


def increment(count: jax.Array) -> jax.Array:
    """Returns `count + 1`; stops at the largest number of its dtype.

    >>> int(increment(jnp.int32(2**31 - 1))) == 2**31 - 1
    True
    """
    if not hasattr(count, "dtype"):  # `state.count` of another transformation's state may be the method of a tuple
        raise ValueError("the state has no step count: pass the state that this transformation's init or update made")
    count = count if isinstance(count, jax.Array) else jnp.asarray(count)
    return jnp.where(count < count.dtype.type(jnp.iinfo(count.dtype).max), count + 1, count)


def zero_count() -> jax.Array:
    """Returns a step count of 0: int32, shape ()."""
    return jnp.zeros([], jnp.int32)
