"""Views: parts of an optimizer's state, presented as variables."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ...core import queries as parts
from ..variables.variable import Variable
from .by_variable import ByVariable, State, field_name, is_by_variable
from .store import Store

Fields = str | tuple[str, ...]


class SlotView(Variable):
    """A view of a part of an optimizer's state; assigning to it changes the state."""

    def __init__(self, store: Store, table: Callable[[State], dict], key: str, name: str):
        self._store, self._table, self._key, self._name = store, table, key, name
        self.trainable, self.constraint = False, None

    @property
    def _value(self) -> jax.Array:
        while True:
            state = self._known()
            x = self._table(state)[self._key]
            if self._store._value is state:  # else another thread's step may have reused the memory of x
                return x

    @_value.setter
    def _value(self, x: jax.Array) -> None:
        # a state of its own, as the dicts may be those of another view of it
        state = jax.tree.map(lambda old: old, self._known())
        self._table(state)[self._key] = x
        self._store.state = state

    def _known(self) -> State:
        if (state := self._store.state) is None:
            raise ValueError(f"{self.name} is a slot of an optimizer that has lost its state")
        return state


class Derived(SlotView):
    """A weight that other libraries keep and this one computes. `store` is called with what is assigned to it."""

    def __init__(self, compute: Callable[[], jax.Array], name: str, store: Callable[[Any], Any] = lambda x: None):
        self._compute, self._name, self._put = compute, name, store
        self.trainable, self.constraint = False, None

    @property
    def _value(self) -> jax.Array:
        return self._compute()

    @_value.setter
    def _value(self, x: jax.Array) -> None:
        self._put(x)


class Scalar(SlotView):
    """A view of a number that an optimizer's state keeps once, not per variable."""

    def __init__(self, store: Store, field: str, name: str):
        super().__init__(store, lambda state: {field: parts.get(state.rule, field)}, field, name)

    @property
    def _value(self) -> jax.Array:
        return super()._value

    @_value.setter
    def _value(self, x: jax.Array) -> None:
        state = self._known()
        self._store.state = state.with_rule(parts.set(state.rule, **{self._key: x}))


def put_all(variables: Sequence[Variable], values: Sequence[jax.Array]) -> None:
    """Gives each variable its value. The slots of an optimizer change together, with one copy of its state."""
    states: dict[int, tuple[Store, State]] = {}
    for v, x in zip(variables, values, strict=True):
        if type(v) is SlotView:
            _, state = states.setdefault(id(v._store), (v._store, jax.tree.map(lambda old: old, v._known())))
            v._table(state)[v._key] = x
    for store, state in states.values():
        store.state = state
    for v, x in zip(variables, values, strict=True):
        if type(v) is not SlotView:
            v._value = x


def find(state: State | None, field: Fields, key: str) -> dict[str, jax.Array]:
    """Returns the rule's only field of that name with an array for a variable. Raises KeyError."""
    named = (field,) if isinstance(field, str) else field
    found = [x for name, x in _tables(state) if name in named and hasattr(x.get(key), "dtype")]
    if len(found) != 1:
        raise KeyError(f"the state has {len(found) or 'no'} fields {field!r} of {key!r}; there are {fields(state)}")
    return found[0]


def fields(state: State | None) -> list[str]:
    """Returns the names of the fields of the rule that are kept per variable, in order, each once."""
    return list(dict.fromkeys(name for name, _ in _tables(state) if name))


def _tables(state: State | None) -> list[tuple[str, ByVariable]]:
    found = jax.tree_util.tree_leaves_with_path(state.rule if state else None, is_leaf=is_by_variable)
    return [(field_name(path), x) for path, x in found if is_by_variable(x)]
