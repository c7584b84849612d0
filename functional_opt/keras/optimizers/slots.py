"""Slots and weights: the state of an optimizer, presented as variables."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from ..variables.foreign import as_variable
from ..variables.variable import Variable
from ..engine.by_variable import State
from ..engine.donation import to_donate
from .graph_mode import Operation
from ..engine.packing import Group, Packing
from .views import Fields, Scalar, SlotView, find

Groups = tuple[dict[str, Fields], ...]
"""Maps slot names to the field of the state that they are views of, or to fields of which a variable has one.

The groups are in the order of the weights: group by group, and within a group variable by variable.
"""


class Variables(list):
    """A list that can also be called, because `variables` used to be a method."""

    def __call__(self) -> list:
        return self


class SlotMethods:
    """The part of an optimizer that presents its state as variables."""

    slots: Groups = ()
    """The slots in the "keras2" dialect, or in both dialects if `keras3_slots` is empty."""
    keras3_slots: Groups = ()
    scalars: dict[str, str] = {}
    """Weights that are kept once per optimizer, and the fields of the state that they are views of."""

    dialect: str
    _name: str
    _hyper: dict[str, Any]

    def _start(self) -> None:
        """Sets up an optimizer without state."""
        self._variables: dict[str, Variable] = {}  # by their keys in the state
        self._keys: dict[int, str] = {}  # the key of each variable, by id
        self._together: list[list[str]] = []  # keys of variables, in groups whose slots were made together
        self._orphans: set[str] = set()  # keys from a pickle, which a new variable with that path takes over
        self._state = None
        self._last: Group | None = None  # the variables of the last step, if it was packed
        self._structure: Any = None  # of the transformation that made the state
        self._pending_weights: list[np.ndarray] | None = None
        name = "iteration" if self.dialect == "keras3" else "iter"
        self._iterations = Variable(0, trainable=False, dtype=jnp.int32, name=f"{self._name}/{name}")
        self._own_weights: list[Variable] = []  # made by `add_weight`
        self._weights: list[Variable] = []  # own weights or other variables that are listed in `weights`

    @property
    def built(self) -> bool:
        """True once `build` was called or a step was taken."""
        return self._nested is not None or self._flat is not None

    @property
    def _state(self) -> State | None:
        """The state. Between eager steps it is kept packed, as `_flat`; reading it here unpacks it."""
        if self._flat is not None:
            arrays, packing = self._flat
            self._nested, self._flat = packing.unpacked(arrays), None
        return self._nested

    @_state.setter
    def _state(self, state: State | None) -> None:
        self._nested: State | None = state
        self._flat: tuple[list[jax.Array], Packing] | None = None

    def _packed_state(self) -> tuple[list[jax.Array], Packing]:
        """Returns arrays that a step may reuse, and their packing. Arrays that are held elsewhere too are copied."""
        if self._flat is not None:
            return self._flat
        leaves, treedef = jax.tree.flatten(self._nested)
        packing = Packing.of(leaves, treedef)
        return packing.packed(to_donate(leaves)), packing

    def _keep_packed(self, arrays: list[jax.Array], packing: Packing) -> None:
        self._nested, self._flat = None, (arrays, packing)

    def _detach(self) -> None:
        """Replaces the state by a copy, so that writing to slots does not change the original."""
        self._state = jax.tree.map(lambda x: x, self._state)

    @property
    def _operation(self) -> Operation:
        return Operation(self.iterations)

    def __deepcopy__(self, memo: dict) -> Self:
        """Returns a copy with its own state, for the same variables."""
        self._state, self._last = self._state, None
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        shared = ("_variables", "_keys")
        for name, x in self.__dict__.items():
            twin.__dict__[name] = dict(x) if name in shared else copy.deepcopy(x, memo)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        self._state, self._last = self._state, None
        return self.__dict__ | {"_keys": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores everything. A variable that comes later takes over the slots of the pickled one with its path."""
        self.__dict__.update(state)
        self._keys.update((id(v), key) for key, v in self._variables.items())
        self._orphans = set(self._variables)

    @property
    def iterations(self) -> Variable:
        """The number of steps taken: an int32 `Variable` of shape (). Bias corrections and schedules follow it."""
        return self._iterations

    @iterations.setter
    def iterations(self, variable: Variable) -> None:
        if self.built:
            raise RuntimeError(
                "Cannot set `iterations` to a new Variable after the Optimizer weights have been created; "
                "assign to the present one: optimizer.iterations.assign(...)"
            )
        if not (
            isinstance(variable, Variable) and variable.shape == () and jnp.issubdtype(variable.dtype, jnp.integer)
        ):
            raise TypeError(f"iterations must be a Variable that holds one integer, got {variable!r}")
        self._iterations = variable

    # Slots

    def _groups(self) -> Groups:
        return self.keras3_slots if self.dialect == "keras3" and self.keras3_slots else self.slots

    def get_slot_names(self) -> list[str]:
        """Returns the names of the slots that exist; none before the first step."""
        return [
            name
            for group in (self._groups() if self._state else ())
            for name, field in group.items()
            if any(self._has(field, key) for key in self._variables)
        ]

    def get_slot(self, var: Any, slot_name: str) -> Variable:
        """Returns a variable's slot, a view that can be assigned to. Raises KeyError if it does not exist."""
        named = {name: field for group in self._groups() for name, field in group.items()}
        key, field = self._keys.get(id(as_variable(var))), named.get(slot_name)
        if key is None or field is None or not self._has(field, key):
            raise KeyError(f"there is no slot {slot_name!r} of {var!r}; slots are {self.get_slot_names()}")
        return self._slot(lambda state: find(state, field, key), key, slot_name)

    def _slot(self, table: Callable[[State], dict], key: str, slot_name: str) -> SlotView:
        joint = "_" if self.dialect == "keras3" else "/"
        return SlotView(self, table, key, f"{self._name}/{key}{joint}{slot_name}")

    def _has(self, field: Fields, key: str) -> bool:
        try:
            find(self._state, field, key)
        except KeyError:
            return False
        return True

    # Weights

    @property
    def variables(self) -> Variables:
        """All variables that the optimizer keeps, in the order of its dialect. The list can also be called.

        First `iterations`, then (in the "keras3" dialect) the learning rate if it is a number, then running means
        and accumulated gradients, if any, then the slots. In the "keras2" dialect, values kept once per optimizer
        come second; in the other dialect they come last.
        """
        scalars = [Scalar(self, field, f"{self._name}/{name}") for name, field in self.scalars.items() if self._state]
        if self.dialect == "keras2":
            return Variables([self._iterations, *self._weights, *scalars, *self._kept()])
        return Variables([*self._counters(), *self._weights, *self._kept(), *scalars])

    def _counters(self) -> list[Variable]:
        """Returns the variables that are not views of the state: `iterations`, and the learning rate if a number."""
        rate = self._hyper.get("learning_rate")
        return [self._iterations, *([rate] if isinstance(rate, Variable) else [])]

    @property
    def weights(self) -> list[Variable]:
        """The same as `variables`."""
        return self.variables

    def _kept(self) -> Iterator[Variable]:
        if self._state is None:
            return
        for key in self._state.average:
            yield self._slot(lambda state: state.average, key, "average")
        for key in self._state.accumulated:
            yield self._slot(lambda state: state.accumulated, key, "gradient_accumulator")
        for keys in self._together:
            for group in self._groups():
                for key in keys:
                    yield from self._weights_of(key, group)

    def _weights_of(self, key: str, group: dict[str, Fields]) -> Iterator[Variable]:
        """Yields the slots of a variable in one group, as they appear in the weights."""
        for name, field in group.items():
            if self._has(field, key):
                yield self.get_slot(self._variables[key], name)

    def get_weights(self) -> list[np.ndarray]:
        """Returns the values of `weights`."""
        return [w.numpy() for w in self.weights]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assigns `weights`. If the slots do not exist yet, the values are kept until they are made.

        Raises ValueError, and changes nothing, if the length or a shape differs.
        """
        shapes = [np.shape(w) for w in weights]
        if self.built or shapes == [w.shape for w in self.weights]:
            self._assign_weights(weights)
        else:
            self._pending_weights = [np.array(w) for w in weights]

    def _assign_weights(self, weights: Sequence[Any]) -> None:
        own = self.weights
        weights = weights if len(weights) == len(own) else self._of_older_generations(weights)
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

    def _of_older_generations(self, weights: Sequence[Any]) -> Sequence[Any]:
        """Converts weights to the present form, if the class knows an older one."""
        return weights
