"""Slots and weights: what an optimizer keeps, seen as variables."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from ..foreign import as_variable
from ..variable import Variable
from .by_variable import State
from .donation import to_donate
from .graph_mode import Operation
from .packing import Group, Packing
from .views import Fields, Scalar, SlotView, find

Groups = tuple[dict[str, Fields], ...]
"""Slot names and the field of the state that they are views of, or the fields of which a variable has one.

In the order of the weights: group by group, and within a group variable by variable.
"""


class Variables(list):
    """A list that may also be called, as `variables` was a method once."""

    def __call__(self) -> list:
        return self


class SlotMethods:
    """The part of an optimizer that shows its state as variables."""

    slots: Groups = ()
    """Of the "keras2" dialect, or of both where `keras3_slots` is empty."""
    keras3_slots: Groups = ()
    scalars: dict[str, str] = {}
    """Weights that are kept once, not by variable, and the fields of the state that they are views of."""

    dialect: str
    _name: str
    _hyper: dict[str, Any]

    def _start(self) -> None:
        """Nothing kept yet."""
        self._variables: dict[str, Variable] = {}  # by the key under which the state has them
        self._keys: dict[int, str] = {}  # of each variable, by id
        self._together: list[list[str]] = []  # the keys of variables whose slots were made at one time
        self._orphans: set[str] = set()  # keys whose variables stayed behind when this was pickled
        self._state = None
        self._last: Group | None = None  # the variables of the last step, if it was packed
        self._structure: Any = None  # of the transformation that the state belongs to
        self._pending_weights: list[np.ndarray] | None = None
        name = "iteration" if self.dialect == "keras3" else "iter"
        self._iterations = Variable(0, trainable=False, dtype=jnp.int32, name=f"{self._name}/{name}")
        self._own_weights: list[Variable] = []  # made by `add_weight`
        self._weights: list[Variable] = []  # those of them, or others, that are among `weights`

    @property
    def built(self) -> bool:
        """Whether `build` was called, or a step done."""
        return self._nested is not None or self._flat is not None

    @property
    def _state(self) -> State | None:
        """The state. Between eager steps it is kept packed, as `_flat`; this unpacks it when somebody looks."""
        if self._flat is not None:
            arrays, packing = self._flat
            self._nested, self._flat = packing.unpacked(arrays), None
        return self._nested

    @_state.setter
    def _state(self, state: State | None) -> None:
        self._nested: State | None = state
        self._flat: tuple[list[jax.Array], Packing] | None = None

    def _packed_state(self) -> tuple[list[jax.Array], Packing]:
        """Arrays that a step may reuse, and what they stand for: copies of those that are held elsewhere too."""
        if self._flat is not None:
            return self._flat
        leaves, treedef = jax.tree.flatten(self._nested)
        packing = Packing.of(leaves, treedef)
        return packing.packed(to_donate(leaves)), packing

    def _keep_packed(self, arrays: list[jax.Array], packing: Packing) -> None:
        self._nested, self._flat = None, (arrays, packing)

    def _detach(self) -> None:
        """Makes the state a copy, which slots can write to without changing the one that was there."""
        self._state = jax.tree.map(lambda x: x, self._state)

    @property
    def _operation(self) -> Operation:
        return Operation(self.iterations)

    def __deepcopy__(self, memo: dict) -> Self:
        """A twin with a state of its own, for the same variables."""
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
        """All as it was; a variable that comes later takes over what one of the same path left."""
        self.__dict__.update(state)
        self._keys.update((id(v), key) for key, v in self._variables.items())
        self._orphans = set(self._variables)

    @property
    def iterations(self) -> Variable:
        """Steps done: an int32 `Variable` of shape (). Bias corrections and schedules follow it."""
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
        """The names of the slots there are; none before the first step."""
        return [
            name
            for group in (self._groups() if self._state else ())
            for name, field in group.items()
            if any(self._has(field, key) for key in self._variables)
        ]

    def get_slot(self, var: Any, slot_name: str) -> Variable:
        """A variable's slot, a view that can be assigned to. Raises KeyError for what is not there."""
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
        """All that the optimizer keeps, in the order of its dialect; may also be called.

        `iterations`, in the "keras3" dialect then a learning rate that is a number; running means and
        accumulated gradients, if there are any; the slots. What is kept once is second in the "keras2"
        dialect, last in the other.
        """
        scalars = [Scalar(self, field, f"{self._name}/{name}") for name, field in self.scalars.items() if self._state]
        if self.dialect == "keras2":
            return Variables([self._iterations, *self._weights, *scalars, *self._kept()])
        return Variables([*self._counters(), *self._weights, *self._kept(), *scalars])

    def _counters(self) -> list[Variable]:
        """`iterations`, and a learning rate that is a number: variables that are no views of the state."""
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
        """The slots of a variable that are among the weights, of one group."""
        for name, field in group.items():
            if self._has(field, key):
                yield self.get_slot(self._variables[key], name)

    def get_weights(self) -> list[np.ndarray]:
        """The values of `weights`."""
        return [w.numpy() for w in self.weights]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assigns `weights`; kept until the slots are made where they are not yet.

        Raises ValueError for another length or a shape that differs; nothing is changed then.
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
        """The weights in the present form, where a class knows an older one."""
        return weights
