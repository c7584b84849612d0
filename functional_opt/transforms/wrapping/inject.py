"""inject_hyperparams: hyperparameters kept in the state, for scripts that read or set them there."""

import functools
import inspect
import typing
from collections.abc import Callable, Iterable
from types import UnionType
from typing import Annotated, Any, NamedTuple, Protocol, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np

from ...core.checks import STRUCTURE, Static, as_given, bind, checked
from ...core.leaves import cast_tree_like
from ...core.model_trees import is_function
from ...core.ranges import Convert, DType, described, unread
from ...core.schedule import to_schedule
from ...core.slots import Counter, Number, States
from ...core.transformation import GradientTransformation, as_transformation, increment, transformation, zero_count
from ...core.value import by_value, comparison_key, show, value


class InjectStatefulHyperparamsState(NamedTuple):
    """`count`: steps done. `hyperparams`: by name, assignable. `hyperparams_states`: the schedules' states."""

    count: Counter
    hyperparams: Number
    hyperparams_states: States
    inner_state: States


InjectHyperparamsState = InjectStatefulHyperparamsState
"""Optax's name for it, for older scripts."""


class WrappedScheduleState(NamedTuple):
    """`count`: steps done."""

    count: Counter


class StatefulSchedule(Protocol):
    """A hyperparameter with a state of its own, for `inject_hyperparams`."""

    def init(self) -> Any: ...
    def update(self, state: Any, **extra) -> Any: ...
    def __call__(self, state: Any, **extra) -> Any: ...


@value
class WrappedSchedule:
    """Gives a schedule a count of its own: `init()`, `update(state, **extra)`, and a call with the state.

    >>> schedule = WrappedSchedule(lambda count: 1 / (1 + count))
    >>> float(schedule(schedule.update(schedule.init())))
    0.5
    """

    schedule_fn: Annotated[Any, Convert(to_schedule, "schedule")]

    def init(self) -> WrappedScheduleState:
        return WrappedScheduleState(zero_count())

    def update(self, state: WrappedScheduleState, **extra) -> WrappedScheduleState:
        return WrappedScheduleState(increment(state.count))

    def __call__(self, state: WrappedScheduleState, **extra) -> Any:
        return self.schedule_fn(state.count)

    def __repr__(self):
        return show(self.schedule_fn)


@checked
def inject_hyperparams(
    inner_factory: Callable, static_args: str | Iterable[str] = (), hyperparam_dtype: DType | None = None
) -> Callable[..., Any]:
    """Returns a constructor of the same transformation that keeps its numbers in `state.hyperparams`, by name.

    This library does not need it: a transformation's numbers are its leaves, and every `learning_rate` may be a
    schedule. Use it for scripts that read or set a hyperparameter in the state, such as `state.hyperparams["b1"]`, or
    to pass a schedule for an argument that otherwise must be a number. A scheduled hyperparameter is overwritten at
    every step.

    Args:
        inner_factory: a function or class that makes a transformation, ours or not.
        static_args: names of arguments that are not hyperparameters: functions that are not schedules, and numbers
            that determine structure. Arguments annotated as `int`, `Static`, a function or a mask count as such
            already, and so does an integer if the default is one.
        hyperparam_dtype: the dtype of hyperparameters; float32 if None.

    Raises ValueError for a name in `static_args` that is not an argument; TypeError or ValueError, when the
    constructor is called, for what `inner_factory` rejects.

    >>> from functional_opt import sgd
    >>> tx = inject_hyperparams(sgd)(learning_rate=0.1)
    >>> state = tx.init({"w": 0.0})
    >>> state.hyperparams["learning_rate"] = 0.5
    >>> tx.update({"w": 1.0}, state)[0]["w"].item()
    -0.5

    Differs from Optax: hyperparameters are float32 whatever the params' dtype. In Optax, with bfloat16 params, a b2
    of 0.999 becomes 1 and Adam's first update is NaN.
    """
    statics = frozenset({static_args} if isinstance(static_args, str) else static_args)
    signature = inspect.signature(inner_factory)
    parameters = signature.parameters
    if unknown := statics - parameters.keys():
        raise ValueError(f"static_args has {sorted(unknown)}, which are not arguments of {show(inner_factory)}")
    statics |= {name for name, hint in _hints(inner_factory).items() if _is_structure(hint)}

    @functools.wraps(inner_factory)
    def construct(*args: Any, **kwargs: Any) -> _Injected:
        bound = bind(show(inner_factory), signature, args, kwargs)
        given = tuple(bound.arguments)
        bound.apply_defaults()
        numbers, others = {}, {}
        for name, x in bound.arguments.items():
            x = as_given(x)
            if name not in statics and _is_schedule(x):
                numbers[name] = x if hasattr(x, "update") else WrappedSchedule(x)
            elif name not in statics and _is_number(x) and not type(x) is type(parameters[name].default) is int:
                numbers[name] = x
            else:
                others[name] = x
        return _Injected(inner_factory, numbers, _Others(others), given, hyperparam_dtype)

    return construct


inject_stateful_hyperparams = inject_hyperparams
"""Optax's name for it, for older scripts."""


class _Others:
    """Makes the arguments that are not hyperparameters hashable."""

    def __init__(self, arguments: dict):
        self.arguments = {name: by_value(x) for name, x in arguments.items()}

    def __eq__(self, other):
        return isinstance(other, _Others) and comparison_key(self.arguments) == comparison_key(other.arguments)

    def __hash__(self):
        return hash(tuple(self.arguments))


@transformation
class _Injected(GradientTransformation):
    factory: Static[Callable]
    numbers: dict[str, Any]
    others: Static[_Others]
    given: Static[tuple[str, ...]]
    dtype: Static[DType | None] = None

    def __post_init__(self):
        """Raises what the factory raises for these arguments."""
        self.make({name: x(x.init()) if _is_schedule(x) else x for name, x in self.numbers.items()})

    def make(self, numbers: dict) -> GradientTransformation:
        """Returns the inner transformation with these hyperparameters."""
        parameters = inspect.signature(self.factory).parameters
        args, kwargs = [], {}
        for name, x in {**self.others.arguments, **numbers}.items():
            if parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                kwargs.update(x)
            elif parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
                args.extend(x)
            else:
                kwargs[name] = x
        return as_transformation(self.factory(*args, **kwargs), "the result of inner_factory")

    def _made_of_state(self, numbers: dict) -> GradientTransformation:
        """Does the same at a step, without making the host wait for the state's numbers, which are on a device."""
        return unread(lambda: self.make(numbers))

    def init(self, params):
        states = {name: x.init() for name, x in self.numbers.items() if _is_schedule(x)}
        numbers = {name: x(states[name]) if name in states else x for name, x in self.numbers.items()}
        numbers = {name: jnp.asarray(x, self.dtype or float) for name, x in numbers.items()}
        inner = self._made_of_state(numbers).init(params)
        return InjectStatefulHyperparamsState(zero_count(), numbers, states, inner)

    def update(self, updates, state, params=None, **extra):
        numbers, states = dict(state.hyperparams), {}
        if numbers.keys() != self.numbers.keys():
            changed = sorted(map(str, numbers.keys() ^ self.numbers.keys()))
            raise ValueError(
                f"state.hyperparams must have the hyperparameters that init put there, {', '.join(self.numbers)}; "
                f"{', '.join(changed)} was added or is missing"
            )
        for name, s in state.hyperparams_states.items():
            numbers[name] = self.numbers[name](s, **extra)
            states[name] = self.numbers[name].update(s, **extra)
        numbers = {name: self._as_number(name, x) for name, x in numbers.items()}
        updates, inner = self._made_of_state(numbers).update(updates, state.inner_state, params, **extra)
        inner = cast_tree_like(inner, state.inner_state, ("the new state", "the state"))
        return updates, InjectStatefulHyperparamsState(increment(state.count), numbers, states, inner)

    def _as_number(self, name: str, x: Any) -> jax.Array:
        try:
            return jnp.asarray(x, self.dtype or float)
        except (TypeError, ValueError) as e:
            raise TypeError(
                f"state.hyperparams[{name!r}] must be a number, got {described(x)}; "
                "give a schedule to the constructor"
            ) from e

    def __repr__(self):
        arguments = {**self.numbers, **self.others.arguments}
        options = "" if self.dtype is None else f", hyperparam_dtype={show(self.dtype)}"
        given = ", ".join(f"{name}={show(arguments[name])}" for name in self.given)
        return f"inject_hyperparams({show(self.factory)}{options})({given})"


def _is_schedule(x: Any) -> bool:
    """Returns whether to call an argument at every step; false for a callable module that is a tree of bools."""
    if isinstance(x, type | jax.Array) or not callable(x):
        return False
    return is_function(x) or not any(isinstance(leaf, bool | np.bool_) for leaf in jax.tree.leaves(x))


def _is_number(x: Any) -> bool:
    if isinstance(x, jax.Array):
        return not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return isinstance(x, int | float | np.number | np.ndarray) and not isinstance(x, bool)


def _hints(factory: Any) -> dict[str, Any]:
    while isinstance(factory, functools.partial):
        factory = factory.func
    try:
        return typing.get_type_hints(factory, include_extras=True)
    except (NameError, TypeError):  # an annotation cannot be resolved, as may happen in foreign code
        return dict(getattr(factory, "__annotations__", {}))


def _is_structure(hint: Any) -> bool:
    """Returns whether an annotation rules out a hyperparameter: `Static`, `int`, a mask ..."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *marks = get_args(hint)
        converted = base is Any and any(isinstance(m, Convert) for m in marks)
        return STRUCTURE in marks or converted or _is_structure(base)
    if origin in (Union, UnionType):
        return all(_is_structure(h) for h in get_args(hint) if h is not type(None))
    if hint is Callable or origin is get_origin(Callable[..., Any]):
        return True
    plain = hint in (int, bool, str, "int", "bool", "str")
    return plain or (isinstance(hint, type) and issubclass(hint, GradientTransformation))
