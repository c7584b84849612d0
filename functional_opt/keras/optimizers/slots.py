"""Slots: what an optimizer keeps for each variable, seen as variables."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..variable import Variable
from .by_variable import State, field_name, is_by_variable


class Slot(Variable):
    """A view of one variable's part of one field of an optimizer's state; to assign to it changes the state."""

    def __init__(self, optimizer: Any, field: str, key: str, name: str):
        self._optimizer, self._field, self._key, self._name = optimizer, field, key, name
        self.trainable, self.constraint = False, None

    @property
    def _value(self) -> jax.Array:
        return find(self._optimizer._state, self._field, self._key)[self._key]

    @_value.setter
    def _value(self, x: jax.Array) -> None:
        find(self._optimizer._state, self._field, self._key)[self._key] = x


def find(state: State | None, field: str, key: str) -> dict[str, jax.Array]:
    """The one field of that name that has an array for a variable. Raises KeyError if there is none, or several."""
    found = [x for name, x in _tables(state) if name == field and hasattr(x.get(key), "dtype")]
    if len(found) != 1:
        raise KeyError(f"the state has {len(found) or 'no'} fields {field!r} of {key!r}; there are {fields(state)}")
    return found[0]


def fields(state: State | None) -> list[str]:
    """The names of the fields that are kept by variable, in order, each once."""
    return list(dict.fromkeys(name for name, _ in _tables(state) if name))


def _tables(state: State | None) -> list[tuple[str, dict]]:
    found = jax.tree_util.tree_leaves_with_path(state.inner if state else None, is_leaf=is_by_variable)
    return [(field_name(path), x) for path, x in found if is_by_variable(x)]


class Slots:
    """The part of an optimizer that shows its state as variables: slots and weights."""

    slot_fields: dict[str, str] = {}
    """Slot names, in the order in which Keras makes them, and the fields of the state they are views of."""

    _name: str
    _state: State | None
    _structure: Any
    _iterations: Variable
    _variables: dict[str, Variable]
    _keys: dict[int, str]
    _pending_weights: list[np.ndarray] | None

    def _start(self) -> None:
        """Nothing kept yet."""
        self._variables = {}  # by the key under which the state has them
        self._keys = {}  # of each variable, by id
        self._state = None
        self._structure = None  # of the transformation that the state belongs to
        self._pending_weights = None
        self._iterations = Variable(0, trainable=False, dtype=jnp.int32, name=f"{self._name}/iter")

    @property
    def iterations(self) -> Variable:
        """Steps done: an int32 `Variable` of shape (). Bias corrections and schedules follow it."""
        return self._iterations

    @iterations.setter
    def iterations(self, variable: Variable) -> None:
        if self._state is not None:
            raise RuntimeError(
                "Cannot set `iterations` to a new Variable after the Optimizer weights have been created; "
                "assign to the present one: optimizer.iterations.assign(...)"
            )
        if not (
            isinstance(variable, Variable) and variable.shape == () and jnp.issubdtype(variable.dtype, jnp.integer)
        ):
            raise TypeError(f"iterations must be a Variable that holds one integer, got {variable!r}")
        self._iterations = variable

    def get_slot_names(self) -> list[str]:
        """The names of the slots there are; none before the first step."""
        if self._state is None:
            return []
        return [name for name, field in self._slot_fields() if any(self._has(field, key) for key in self._variables)]

    def get_slot(self, var: Variable, slot_name: str) -> Variable:
        """A variable's slot, a view that can be assigned to. Raises KeyError for what is not there."""
        field = dict(self._slot_fields()).get(slot_name)
        key = self._keys.get(id(var))
        if key is None or field is None or not self._has(field, key):
            raise KeyError(f"there is no slot {slot_name!r} of {var!r}; slots are {self.get_slot_names()}")
        return Slot(self, field, key, f"{self._name}/{key}/{slot_name}")

    def _slot_fields(self) -> Iterable[tuple[str, str]]:
        return self.slot_fields.items()

    def _has(self, field: str, key: str) -> bool:
        try:
            find(self._state, field, key)
        except KeyError:
            return False
        return True

    @property
    def weights(self) -> list[Variable]:
        """`iterations`, then the slots, slot by slot."""
        if self._state is None:
            return [self._iterations]
        slots = [
            self.get_slot(v, name)
            for name, field in self._slot_fields()
            for key, v in self._variables.items()
            if self._has(field, key)
        ]
        return [self._iterations, *slots]

    def get_weights(self) -> list[np.ndarray]:
        """The values of `weights`."""
        return [w.numpy() for w in self.weights]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assigns `weights`; kept until the slots are made where they are not yet.

        Raises ValueError for another length or a shape that differs; nothing is changed then.
        """
        if self._state is None:
            self._pending_weights = [np.array(w) for w in weights]
        else:
            self._assign_weights(weights)

    def _assign_weights(self, weights: Sequence[Any]) -> None:
        own = self.weights
        if len(weights) != len(own):
            raise ValueError(
                f"You called `set_weights(weights)` on optimizer {self._name} with a weight list of length "
                f"{len(weights)}, but the optimizer was expecting {len(own)} weights."
            )
        for w, x in zip(own, weights, strict=True):
            if np.shape(x) != w.shape:
                raise ValueError(f"Optimizer weight {w.name} has shape {w.shape}; it cannot be set to {np.shape(x)}")
        for w, x in zip(own, weights, strict=True):
            w.assign(x)
