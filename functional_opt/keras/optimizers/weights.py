"""WeightViews: the state of an optimizer, presented as variables in the order of a dialect."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, Self

import jax.numpy as jnp
import numpy as np

from ..engine.engine import SingleEngine
from ..engine.views import Fields, Scalar, SlotView, find, put_all
from ..variables.foreign import as_variable
from ..variables.variable import Variable

Groups = tuple[dict[str, Fields], ...]
"""Maps slot names to the field of the state that they are views of, or to fields of which a variable has one.

The groups are in the order of the weights: group by group, and within a group variable by variable.
"""


class Variables(list):
    """A list that can also be called, because `variables` used to be a method."""

    def __call__(self) -> list:
        return self


class OwnWeights(list):
    """OptimizerV2's `_weights`: all weights. What a script appends is listed in `weights` from then on."""

    def __init__(self, weights: Sequence[Variable], extra: list[Variable]):
        super().__init__(weights)
        self._extra = extra

    def append(self, weight: Variable) -> None:
        self.extend([weight])

    def extend(self, weights: Iterable[Variable]) -> None:
        weights = list(weights)
        super().extend(weights)
        self._extra.extend(weights)

    def __iadd__(self, weights: Iterable[Variable]) -> Self:
        self.extend(weights)
        return self


class Weighted(Protocol):
    """An optimizer, as its views see it."""

    _engine: Any
    weights: Sequence[Variable]
    _parts: Sequence[Any]
    _name: str
    dialect: str
    scalars: dict[str, str]
    weights_start_with_iteration: bool
    _extra_weights: list[Variable]

    def _rule_slots(self) -> Groups: ...

    def _added_slots(self) -> dict[str, Any]: ...

    def _counters(self) -> list[Variable]: ...

    def _slot_label(self, key: str, slot_name: str) -> str: ...

    def _weights_of(self, key: str, group: dict[str, Fields]) -> Iterator[Variable]: ...

    def _part_of(self, variable: Variable) -> int: ...

    def _of_older_generations(self, weights: Sequence[Any]) -> Sequence[Any]: ...


class WeightViews:
    """Shows slots and weights of an optimizer. It keeps nothing itself."""

    def __init__(self, optimizer: Any):
        self._optimizer: Weighted = optimizer

    @property
    def _store(self) -> Any:
        engine = self._optimizer._engine
        assert isinstance(engine, SingleEngine)
        return engine.store

    # Slots

    def slot_names(self) -> list[str]:
        """Returns the names of the slots that exist: those of the rule, then those made by `add_slot`."""
        store = self._store
        if store.state is None:
            return []
        own = [
            name
            for group in self._optimizer._rule_slots()
            for name, field in group.items()
            if any(self.has(field, key) for key in store.variables)
        ]
        return [*own, *self._optimizer._added_slots()]

    def slot(self, var: Any, slot_name: str) -> SlotView:
        """Returns a variable's slot. Raises KeyError if it does not exist."""
        key = self._store.keys.get(id(as_variable(var)))
        if key is not None and key in self._optimizer._added_slots().get(slot_name, ()):
            return self.added_slot(key, slot_name)
        named = {name: field for group in self._optimizer._rule_slots() for name, field in group.items()}
        field = named.get(slot_name)
        if key is None or field is None or not self.has(field, key):
            raise KeyError(f"there is no slot {slot_name!r} of {var!r}; slots are {self.slot_names()}")
        return self._view(lambda state: find(state, field, key), key, slot_name)

    def added_slot(self, key: str, slot_name: str) -> SlotView:
        """Returns a slot made by `add_slot`."""
        return self._view(lambda state: state.added[slot_name], key, slot_name)

    def _view(self, table: Callable[[Any], dict], key: str, slot_name: str) -> SlotView:
        return SlotView(self._store, table, key, self._optimizer._slot_label(key, slot_name))

    def has(self, field: Fields, key: str) -> bool:
        """Returns whether the state has this field for a variable."""
        try:
            find(self._store.state, field, key)
        except KeyError:
            return False
        return True

    # Weights

    def variables(self) -> Variables:
        """Returns all variables that the optimizer keeps, in the order of its dialect."""
        own, store = self._optimizer, self._store
        there = own.scalars.items() if store.state is not None else ()
        scalars = [Scalar(store, field, f"{own._name}/{name}") for name, field in there]
        if own.dialect == "keras2":
            return Variables([*own._counters()[:1], *own._extra_weights, *scalars, *self._kept()])
        return Variables([*own._counters(), *own._extra_weights, *self._kept(), *scalars])

    def _kept(self) -> Iterator[Variable]:
        store, state = self._store, self._store.state
        if state is None:
            return
        for key in state.average:
            yield self._view(lambda state: state.average, key, "average")
        for key in state.accumulated:
            yield self._view(lambda state: state.accumulated, key, "gradient_accumulator")
        added = self._optimizer._added_slots()
        for keys in store.together:
            for group in self._optimizer._rule_slots():
                for key in keys:
                    yield from self._optimizer._weights_of(key, group)
            for name, table in added.items():
                yield from (self.added_slot(key, name) for key in keys if key in table)

    def set(self, weights: Sequence[Any]) -> None:
        """Assigns weights, or keeps them until the slots exist. Raises ValueError, if one is wrong.

        Before the first step, weights are refused that no variables could make fit. Weights that are kept take the
        place of those that were kept before.
        """
        own = self._optimizer.weights
        weights = list(weights)
        if not self._optimizer._engine.built and [np.shape(w) for w in weights] != [w.shape for w in own]:
            kept = [_array(f"weight {i}", w) for i, w in enumerate(weights)]
            self._check_start(own, kept)
            self._store.pending_weights = kept
            return
        self.assign(weights)
        self._store.pending_weights = None

    def assign_kept(self, weights: Sequence[Any]) -> None:
        """Assigns weights that were kept until the slots exist. Raises ValueError if they do not fit."""
        try:
            self.assign(weights)
        except ValueError as e:
            raise ValueError(
                f"the weights that set_weights got before the first step do not fit the variables: {e} Call "
                "set_weights with others, or opt.set_weights(opt.get_weights()) to begin without them."
            ) from e

    def _check_start(self, own: Sequence[Variable], weights: Sequence[np.ndarray]) -> None:
        """Raises ValueError for weights that no variables could make fit: they must begin with those that exist."""
        if not self._optimizer.weights_start_with_iteration:
            return
        for i, w in enumerate(own):
            given = weights[i].shape if i < len(weights) else "nothing"
            if given != w.shape:
                raise ValueError(f"weight {i} must be {w.name} of shape {w.shape}, got {given} in its place")

    def assign(self, weights: Sequence[Any]) -> None:
        """Assigns to `weights`, as it may be overridden. Raises ValueError, and then changes nothing."""
        own = self._optimizer.weights
        weights = weights if len(weights) == len(own) else self._optimizer._of_older_generations(weights)
        if len(weights) != len(own):
            raise ValueError(
                f"You called `set_weights(weights)` on optimizer {self._optimizer._name} with a weight list of "
                f"length {len(weights)}, but the optimizer was expecting {len(own)} weights."
            )
        assign_all(own, weights)


class WrapperViews(WeightViews):
    """Shows the weights of an optimizer that wraps others: its own variables, then those of each inner optimizer."""

    def slot_names(self):
        return list(dict.fromkeys(name for part in self._parts for name in part.get_slot_names()))

    def slot(self, var, slot_name):
        return self._part_of(var).get_slot(var, slot_name)

    def variables(self):
        return Variables([*self._optimizer._counters(), *(v for part in self._parts for v in part.weights)])

    def set(self, weights):
        own, engine = self._optimizer.weights, self._optimizer._engine
        weights = list(weights)
        if not engine.built and [np.shape(w) for w in weights] != [w.shape for w in own]:
            kept = [_array(f"weight {i}", w) for i, w in enumerate(weights)]
            engine.once_built = functools.partial(self.assign_kept, kept)
            return
        self.assign(weights)
        engine.once_built = None

    @property
    def _parts(self) -> Sequence[Any]:
        return self._optimizer._parts

    def _part_of(self, var: Any) -> Any:
        return self._parts[self._optimizer._part_of(as_variable(var))]


def assign_all(own: Sequence[Variable], weights: Sequence[Any]) -> None:
    """Assigns a value to each weight: to all, or with ValueError to none."""
    values = []
    for w, x in zip(own, weights, strict=True):
        x = _array(f"Optimizer weight {w.name}", x)
        if x.shape != w.shape:
            raise ValueError(f"Optimizer weight {w.name} has shape {w.shape}; it cannot be set to {x.shape}.")
        if np.issubdtype(x.dtype, np.complexfloating) and not np.issubdtype(np.dtype(w.dtype), np.complexfloating):
            raise ValueError(f"Optimizer weight {w.name} has dtype {w.dtype}; it cannot be set to {x.dtype}.")
        values.append(x)
    put_all(own, [jnp.array(x).astype(w.dtype) for w, x in zip(own, values, strict=True)])


def _array(what: str, x: Any) -> np.ndarray:
    """Returns an array of numbers. Raises ValueError for anything else."""
    try:
        array = np.array(x)
    except Exception as e:
        raise ValueError(f"{what} must be an array of numbers, got {x!r}") from e
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool or array.dtype.kind == "V"):
        raise ValueError(f"{what} must be an array of numbers, got dtype {array.dtype}")
    return array
