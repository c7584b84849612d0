"""Views: the arrays of a facade optimizer as variables of the real Keras, which reads and assigns to them."""

import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..engine.by_variable import is_by_variable
from ..engine.store import Store
from ..optimizers import Optimizer
from ..variables.foreign import as_variable
from ..variables.variable import Variable


def keras() -> Any:
    """Returns the real Keras, which has been imported: it asked for an optimizer."""
    return sys.modules["keras"]


class Views:
    """The views of one optimizer. They stay the same objects, by which Keras's scopes know them."""

    def __init__(self) -> None:
        self.trainable: list[Any] | None = None
        """The variables that `build` was given, in their order, which is that of the arrays in Keras's steps."""
        self._numbers: dict[int, Any] = {}
        self._states: dict[int, _StateViews] = {}
        self._names: set[str] = set()

    def __deepcopy__(self, memo: dict) -> "Views":
        return Views()

    def numbers(self, optimizer: Optimizer) -> list[Any]:
        """Returns the views of the variables beside the state: `iterations`, the learning rate, own weights."""
        return [self._number(part, v) for part in family(optimizer) for v in _beside_the_state(part)]

    def __call__(self, optimizer: Optimizer) -> list[Any]:
        """Returns the views of everything that a step of the optimizer, and of those that it wraps, may change."""
        return self.numbers(optimizer) + [v for part in singles(optimizer) for v in self._of_state(part).all()]

    def averages(self, optimizer: Optimizer, variables: Sequence[Variable]) -> list[Any]:
        """Returns the views of the running means of some variables, which the state must have."""
        store, views = optimizer._single_engine().store, self._of_state(optimizer)
        views.all()
        field = jax.tree_util.GetAttrKey("average")
        return [views.at[field, jax.tree_util.DictKey(store.keys[id(v)])] for v in variables]

    def unshare(self, optimizer: Optimizer) -> None:
        """Copies every array, as Keras's steps reuse the memory, which others may share. New views do so, too."""
        for view in self(optimizer):
            view._value = jnp.copy(view._value)

    def _number(self, part: Optimizer, v: Variable) -> Any:
        if id(v) not in self._numbers:
            self._numbers[id(v)] = _number_class()(v, self._name(part, v.path.split("/")[-1]))
        return self._numbers[id(v)]

    def _of_state(self, part: Optimizer) -> "_StateViews":
        store = part._single_engine().store
        if id(store) not in self._states:
            self._states[id(store)] = _StateViews(store, functools.partial(self._name, part))
        return self._states[id(store)]

    def _name(self, part: Optimizer, name: str) -> str:
        """Returns a name that no other view of the optimizer has; Keras allows no slash in it."""
        name, n = f"{part.name}_{name}".replace("/", "_"), 1
        while (whole := name if n == 1 else f"{name}_{n}") in self._names:
            n += 1
        self._names.add(whole)
        return whole


class _StateViews:
    """The views of the arrays in the state of one optimizer, by their paths."""

    def __init__(self, store: Store, name: Any):
        self.at: dict[tuple, Any] = {}
        self._store, self._name = store, name
        self._structure: Any = None
        self._all: list[Any] = []

    def all(self) -> list[Any]:
        """Returns the views in the order of the state."""
        state = self._store.state
        if state is None:
            return []
        structure = jax.tree.structure(state)
        if self._structure is None or structure != self._structure:
            paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
            for path in paths:
                if path not in self.at:
                    name = self._name(jax.tree_util.keystr(path, simple=True, separator="."))
                    self.at[path] = _entry_class()(self._store, path, name)
            self._structure, self._all = structure, [self.at[path] for path in paths]
        return self._all


def family(optimizer: Optimizer) -> Iterator[Optimizer]:
    """Yields an optimizer and those that it wraps."""
    yield optimizer
    for part in _parts(optimizer):
        yield from family(part)


def singles(optimizer: Optimizer) -> Iterator[Optimizer]:
    """Yields those of them that have a state of their own."""
    return (part for part in family(optimizer) if not _parts(part) and hasattr(part._engine, "store"))


def _parts(optimizer: Optimizer) -> list[Optimizer]:
    return optimizer.__dict__.get("_parts", [])


def _beside_the_state(part: Optimizer) -> list[Variable]:
    rate = part._hyper.get("learning_rate")  # other hyperparameters are constants of a program of Keras's
    found = [*part._counters(), *([rate] if isinstance(rate, Variable) else [])]
    found += [*part._own_weights, *(as_variable(w) for w in part._extra_weights)]
    return list({id(v): v for v in found}.values())


# Arrays in a state, by their paths


def _read(state: Any, path: tuple) -> Any:
    x = _at(state, path)
    return jax.random.key_data(x) if _is_key(x) else x


def _write(store: Store, path: tuple, x: Any) -> None:
    state = store.state
    table = _at(state, path[:-1])
    if is_by_variable(table) and not _is_key(table[path[-1].key]):
        table[path[-1].key] = x  # at once, as states can have thousands of arrays
        return

    def leaf(at: tuple, old: Any) -> Any:
        if at != path:
            return old
        return jax.random.wrap_key_data(x, impl=jax.random.key_impl(old)) if _is_key(old) else x

    store.state = jax.tree_util.tree_map_with_path(leaf, state)


def _at(tree: Any, path: tuple) -> Any:
    for i, key in enumerate(path):
        if isinstance(key, jax.tree_util.GetAttrKey):
            tree = getattr(tree, key.name)
        elif isinstance(key, jax.tree_util.DictKey):
            tree = tree[key.key]
        elif isinstance(key, jax.tree_util.SequenceKey):
            tree = tree[key.idx]
        else:  # of a class that has no names for its parts
            return dict(jax.tree_util.tree_leaves_with_path(tree)).get(path[i:])
    return tree


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


# Classes of Keras's, made when Keras is there


@functools.cache
def _view_class() -> type:
    class View(keras().Variable):
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
        """A view of an array in the state of an optimizer."""

        def __init__(self, store: Store, path: tuple, name: str) -> None:
            self._store, self._place = store, path
            super().__init__(_read(store.state, path), name)

        def _read(self) -> Any:
            return _read(self._store.state, self._place)

        def _write(self, x: Any) -> None:
            _write(self._store, self._place, x)

    return EntryView
