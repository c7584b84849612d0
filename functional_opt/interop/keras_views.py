"""Views: the arrays of a facade optimizer as variables of the real Keras, which reads and assigns to them."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..keras.engine.by_variable import is_by_variable
from ..keras.optimizers import Optimizer
from ..keras.variables.foreign import as_variable
from ..keras.variables.variable import Variable


class Views:
    """The views of one optimizer. They stay the same objects, by which Keras's scopes know them."""

    def __init__(self) -> None:
        self.trainable: list[Any] | None = None
        """The variables that `build` was given, in their order, which is that of the arrays in Keras's steps."""
        self._numbers: dict[int, Any] = {}
        self._tables: dict[int, _Table] = {}
        self._paths: set[str] = set()

    def __deepcopy__(self, memo: dict) -> "Views":
        return Views()

    def numbers(self, optimizer: Optimizer) -> list[Any]:
        """Returns the views of the variables beside the state: `iterations`, the learning rate, own weights."""
        return [self._number(part, v) for part in family(optimizer) for v in _beside_the_state(part)]

    def __call__(self, optimizer: Optimizer) -> list[Any]:
        """Returns the views of everything that a step of the optimizer, and of those that it wraps, may change."""
        return self.numbers(optimizer) + [v for part in family(optimizer) for v in self._of_state(part)]

    def averages(self, optimizer: Optimizer, variables: list[Any]) -> list[Any]:
        """Returns the views of the running means of some variables, which the state must have."""
        self._of_state(optimizer)
        state: Any = optimizer._state
        return [self._tables[id(optimizer)].view_of(state.average, optimizer._keys[id(v)]) for v in variables]

    def unshare(self, optimizer: Optimizer) -> None:
        """Copies every array, as Keras's steps reuse the memory, which others may share. New views do so, too."""
        for view in self(optimizer):
            view._value = jnp.copy(view._value)

    def _number(self, part: Optimizer, v: Variable) -> Any:
        if id(v) not in self._numbers:
            self._numbers[id(v)] = _number_class()(v, self._name(v.path.split("/")[-1], part))
        return self._numbers[id(v)]

    def _of_state(self, part: Optimizer) -> list[Any]:
        if _parts(part) or part._state is None:
            return []
        table = self._tables.get(id(part)) or self._tables.setdefault(id(part), _Table(part))
        table.follow()
        names = [place.name for place in table.places]
        if names != table.viewed:
            table.views = [_entry_class()(table, i, self._name(name, part)) for i, name in enumerate(names)]
            table.viewed = names
        return table.views

    def _name(self, name: str, part: Optimizer) -> str:
        """Returns a name that no other view of the optimizer has; Keras allows no slash in it."""
        name, n = f"{part.name}_{name}".replace("/", "_"), 1
        while (whole := name if n == 1 else f"{name}_{n}") in self._paths:
            n += 1
        self._paths.add(whole)
        return whole


class _Table:
    """The arrays in the state of an optimizer, in their order. It follows the state when another replaces it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.views: list[Any] = []
        self.viewed: list[str] = []
        """The names of the places that `views` show."""
        self.places: list[_Place] = []
        self._structure: Any = None
        self._state: Any = None
        self._nodes: list[Any] = []

    def follow(self) -> None:
        """Looks at the present state, and finds its places if they may differ from those of the last one."""
        state = self.optimizer._state
        if state is self._state:
            return
        structure = jax.tree.structure(state)
        self._state, self._nodes = state, jax.tree.leaves(state, is_leaf=is_by_variable)
        if self._structure is None or structure != self._structure:
            self._structure, self.places = structure, _places(state, self.optimizer._is_custom)

    def view_of(self, table: Any, key: str) -> Any:
        """Returns the view of one entry of a dict in the state."""
        return next(
            v
            for v, place in zip(self.views, self.places, strict=True)
            if place.node is not None and self._nodes[place.node] is table and place.key == key
        )

    def read(self, i: int) -> Any:
        self.follow()
        place = self.places[i]
        if place.node is not None:
            return self._nodes[place.node][place.key]
        x = jax.tree.leaves(self._state)[place.index]
        return jax.random.key_data(x) if _is_key(x) else x

    def write(self, i: int, x: Any) -> None:
        self.follow()
        place = self.places[i]
        if place.node is not None:
            self._nodes[place.node][place.key] = x
            return
        leaves, treedef = jax.tree.flatten(self._state)
        old = leaves[place.index]
        leaves[place.index] = jax.random.wrap_key_data(x, impl=jax.random.key_impl(old)) if _is_key(old) else x
        self.optimizer._state = treedef.unflatten(leaves)


class _Place(NamedTuple):
    """Where a state has an array: its name, its number, and the node, if any, that holds it by a key.

    Such nodes are dicts by variable, which can be assigned to.
    """

    name: str
    index: int
    node: int | None
    key: Any


def _places(state: Any, is_custom: bool) -> list[_Place]:
    nodes = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_by_variable)
    tables = {path: i for i, (path, x) in enumerate(nodes) if is_by_variable(x)}
    return [
        _Place(
            jax.tree_util.keystr(path, simple=True, separator="."),
            i,
            None if _is_key(x) else tables.get(path[:-1]),
            _name_in(path[-1]),
        )
        for i, (path, x) in enumerate(jax.tree_util.tree_leaves_with_path(state))
        # an optimizer's own weights are variables, of which the state only has copies
        if not (is_custom and [_name_in(key) for key in path[:2]] == ["inner", "weights"])
    ]


def family(optimizer: Optimizer) -> Iterator[Optimizer]:
    """Yields an optimizer and those that it wraps."""
    yield optimizer
    for part in _parts(optimizer):
        yield from family(part)


def _parts(optimizer: Optimizer) -> list[Optimizer]:
    return optimizer.__dict__.get("_parts", [])


def _beside_the_state(part: Optimizer) -> list[Variable]:
    rate = part._hyper.get("learning_rate")  # other hyperparameters are constants of a program of Keras's
    found = [*part._counters(), *([rate] if isinstance(rate, Variable) else [])]
    found += [*part._own_weights, *(as_variable(w) for w in part._weights)]
    return list({id(v): v for v in found}.values())


def _name_in(key: Any) -> Any:
    return getattr(key, "name", getattr(key, "key", None))


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


# Classes of Keras's, made when Keras is there


@functools.cache
def _view_class() -> type:
    import keras

    class View(keras.Variable):
        """A variable of Keras whose value is kept elsewhere, by a subclass's `_read` and `_write`."""

        def __init__(self, x: Any, name: str) -> None:
            super().__init__(jnp.copy(x), dtype=str(x.dtype), trainable=False, autocast=False, name=name)

        @property
        def _value(self) -> Any:
            return self._read()

        @_value.setter
        def _value(self, x: Any) -> None:
            if x is None:
                self._let_go()
            else:
                self._write(x)

        def _let_go(self) -> None:
            """Is called for an epoch, where Keras's step has the array."""

    return View


@functools.cache
def _number_class() -> type:
    class NumberView(_view_class()):
        """A view of one of our variables."""

        def __init__(self, variable: Variable, name: str) -> None:
            self.variable = variable
            super().__init__(variable._value, name)

        def _read(self) -> Any:
            return self.variable._value

        def _write(self, x: Any) -> None:
            self.variable._value = x

        def _let_go(self) -> None:
            self.variable._value = jnp.copy(self.variable._value)  # which callbacks can read

    return NumberView


@functools.cache
def _entry_class() -> type:
    class EntryView(_view_class()):
        """A view of an array in the state."""

        def __init__(self, table: _Table, index: int, name: str) -> None:
            self._table, self._index = table, index
            super().__init__(table.read(index), name)

        def _read(self) -> Any:
            return self._table.read(self._index)

        def _write(self, x: Any) -> None:
            self._table.write(self._index, x)

    return EntryView
