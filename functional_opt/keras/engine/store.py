"""Store: the variables of one optimizer, their keys, and its state."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax import core

from ..variables.recording import BUSY, Cell, notes_of, paused
from ..variables.variable import Variable
from .by_variable import ByVariable, State
from .donation import to_donate
from .packing import Packing

Packed = tuple[list[jax.Array], Packing]


class Store(Cell):
    """Keeps the variables of an optimizer by key, and its state: a `State`, or packed arrays between eager steps."""

    def __init__(self):
        super().__init__(None)
        self._stored: State | Packed | None
        self._variables: dict[str, Variable] = {}
        self._keys: dict[int, str] = {}
        self._twins: dict[int, Any] | None = None  # copies of all objects, by id, after a deep copy
        self.together: list[list[str]] = []  # keys of variables, in groups whose slots were made together
        self.joins = self._joined = False  # whether a group is made slot by slot: the present one, the last one
        self.orphans: set[str] = set()  # keys from a pickle, which a new variable with that path takes over
        self.structure: Any = None  # of the transformation that made the state, and whether it has averages
        self.pending_weights: list[np.ndarray] | None = None  # to assign once the slots exist

    # The state

    @property
    def notes(self) -> dict[str, Any]:
        """A dict for the code of a step: that of the program that is being traced, if any."""
        return notes_of(self, self.__dict__.setdefault("_notes", {}))

    @property
    def built(self) -> bool:
        return self._value is not None

    @property
    def state(self) -> State | None:
        """The state. Reading it unpacks it."""
        if _is_packed(x := self._value):
            with paused(), BUSY.lock:
                if _is_packed(x := self._settled()):
                    x = self._stored = x[1].unpacked(x[0])
        return x

    @state.setter
    def state(self, state: State | None) -> None:
        self._value = state

    @property
    def existing(self) -> State:
        """The state, of an optimizer that has one."""
        state = self.state
        assert state is not None
        return state

    def packed(self) -> Packed:
        """Returns arrays that a step may reuse, and their packing. Arrays that are held elsewhere too are copied."""
        x = self._settled()
        if _is_packed(x):
            return x
        leaves, treedef = jax.tree.flatten(x)
        packing = Packing.of(leaves, treedef)
        del x
        return packing.packed(to_donate(leaves)), packing

    def detach(self) -> None:
        """Replaces the state by a copy of its dicts, so that writing to slots does not change the original."""
        self.state = jax.tree.map(lambda x: x, self.state)

    # Variables

    @property
    def variables(self) -> dict[str, Variable]:
        """The variables by their keys in the state."""
        self._follow_copies()
        return self._variables

    @property
    def keys(self) -> dict[int, str]:
        """The key of each variable, by its id."""
        self._follow_copies()
        return self._keys

    def _follow_copies(self) -> None:
        """After a deep copy, takes the copies of the variables that were copied along, such as those of a model."""
        if self._twins is not None:
            twins, self._twins = self._twins, None
            self._variables = {key: twins.get(id(v), v) for key, v in self._variables.items()}
            self._keys = {id(v): key for key, v in self._variables.items()}

    def register(self, variables: Iterable[Variable]) -> bool:
        """Gives each new variable its key: its path, with a number before it if that is taken.

        Returns whether any is new.
        """
        made, new = [], [v for v in variables if id(v) not in self.keys]
        for v in new:
            key, n = v.path, 1
            if key not in self.orphans:
                while key in self.variables:
                    n += 1
                    key = f"{n}/{v.path}"
                made.append(key)
            self.orphans.discard(key)
            self.variables[key], self.keys[id(v)] = v, key
        if made and self.joins and self._joined:
            self.together[-1] = [*self.together[-1], *made]
        elif made:
            self.together.append(made)
        self._joined = self.joins if made else self._joined
        return bool(new)

    def by_variable(self, variables: Sequence[Variable], values: Sequence[Any]) -> ByVariable:
        """Returns values as a step takes them: by key, None for the variables that take no part."""
        given = {self.keys[id(v)]: x for v, x in zip(variables, values, strict=True)}
        return ByVariable((key, given.get(key)) for key in self.variables)

    def listed(self, variables: Sequence[Variable], values: Any) -> list[Any]:
        """Returns values from a step as a list: the inverse of `by_variable`."""
        return [values[self.keys[id(v)]] for v in variables]

    def idle(self, variables: Sequence[Variable]) -> ByVariable:
        """Returns the values of all variables but these."""
        busy = {id(v) for v in variables}
        return ByVariable((key, v._value) for key, v in self.variables.items() if id(v) not in busy)

    # Undoing, copying

    def snapshot(self) -> tuple[Any, ...]:
        """Returns everything that a step may change."""
        known = dict(self.variables), dict(self.keys), list(self.together), set(self.orphans)
        return known, self._joined, self.structure, self.pending_weights, self._value

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        known, self._joined, self.structure, self.pending_weights, x = snapshot
        self._variables, self._keys, self.together, self.orphans = known
        if x is not self._stored and x is not BUSY:
            self._value = x

    def __deepcopy__(self, memo: dict[int, Any]) -> "Store":
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(self.__dict__)
        twin._stored = jax.tree.map(lambda x: x, self.state)
        twin._variables, twin._keys, twin.orphans = dict(self.variables), dict(self.keys), set(self.orphans)
        twin.together, twin._twins = [list(keys) for keys in self.together], memo  # complete when the copy is done
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stored": self.state, "_variables": self.variables, "_keys": {}, "_notes": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores everything. A variable that comes later takes over the slots of the pickled one with its path."""
        self.__dict__.update(state)
        self._keys.update((id(v), key) for key, v in self.variables.items())
        self.orphans = set(self.variables)


def _is_packed(x: Any) -> bool:
    return type(x) is tuple


def is_traced(tree: Any) -> bool:
    """Returns whether a tree has a tracer among its leaves."""
    return any(isinstance(x, core.Tracer) for x in jax.tree.leaves(tree))
