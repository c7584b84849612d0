"""Views: parts of an optimizer's state, presented as variables."""

from collections.abc import Callable
from typing import Any

import jax

from ...core import queries as parts
from ..variables.variable import Variable
from ..engine.by_variable import ByVariable, State, field_name, is_by_variable

Fields = str | tuple[str, ...]


class SlotView(Variable):
    """A view of a part of an optimizer's state; assigning to it changes the state."""

    def __init__(self, optimizer: Any, table: Callable[[State], dict], key: str, name: str):
        self._optimizer, self._table, self._key, self._name = optimizer, table, key, name
        self.trainable, self.constraint = False, None

    @property
    def _value(self) -> jax.Array:
        return self._table(self._optimizer._state)[self._key]

    @_value.setter
    def _value(self, x: jax.Array) -> None:
        self._table(self._optimizer._state)[self._key] = x


class Derived(SlotView):
    """A weight that other libraries keep and this one computes or does not use. Assignments to it are ignored."""

    def __init__(self, compute: Callable[[], jax.Array], name: str):
        self._compute, self._name = compute, name
        self.trainable, self.constraint = False, None

    @property
    def _value(self) -> jax.Array:
        return self._compute()

    @_value.setter
    def _value(self, x: jax.Array) -> None:
        pass


class Scalar(SlotView):
    """A view of a number that an optimizer's state keeps once, not per variable."""

    def __init__(self, optimizer: Any, field: str, name: str):
        super().__init__(optimizer, lambda state: {field: parts.get(state.inner, field)}, field, name)

    @property
    def _value(self) -> jax.Array:
        return super()._value

    @_value.setter
    def _value(self, x: jax.Array) -> None:
        state = self._optimizer._state
        self._optimizer._state = state._replace(inner=parts.set(state.inner, **{self._key: x}))


def find(state: State | None, field: Fields, key: str) -> dict[str, jax.Array]:
    """Returns the only field of that name with an array for a variable. Raises KeyError for none or several."""
    named = (field,) if isinstance(field, str) else field
    found = [x for name, x in _tables(state) if name in named and hasattr(x.get(key), "dtype")]
    if len(found) != 1:
        raise KeyError(f"the state has {len(found) or 'no'} fields {field!r} of {key!r}; there are {fields(state)}")
    return found[0]


def fields(state: State | None) -> list[str]:
    """Returns the names of the fields that are kept per variable, in order, each once."""
    return list(dict.fromkeys(name for name, _ in _tables(state) if name))


def _tables(state: State | None) -> list[tuple[str, ByVariable]]:
    found = jax.tree_util.tree_leaves_with_path(state.inner if state else None, is_leaf=is_by_variable)
    return [(field_name(path), x) for path, x in found if is_by_variable(x)]
