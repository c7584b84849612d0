"""Wraps other libraries' variables as `Variable`: Keras's, Flax's, and any object with `value` and `assign`."""

import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from . import recording
from .variable import Variable

_known: "weakref.WeakValueDictionary[int, Foreign]" = weakref.WeakValueDictionary()


class Foreign(Variable):
    """A view of another library's variable. An assignment to either one shows in both.

    Args:
        theirs: a `keras.Variable` on the JAX backend, a Flax `nnx.Variable`, or any object whose `value` is
            an array and can be set, directly or by `assign`.
    """

    def __init__(self, theirs: Any):
        self.theirs = theirs
        self._name = str(getattr(theirs, "path", None) or getattr(theirs, "name", None) or type(theirs).__name__)
        self._unwatched = self._swaps = not _is_keras(theirs)
        self.overwrite_with_gradient = bool(getattr(theirs, "overwrite_with_gradient", False))
        if not isinstance(self._stored, jax.Array):
            raise TypeError(
                f"{self._name} holds a {type(self._stored).__name__}, not a JAX array; "
                "with Keras, set KERAS_BACKEND=jax and build the model first"
            )

    @property
    def trainable(self) -> bool:
        return bool(getattr(self.theirs, "trainable", True))

    @property
    def constraint(self) -> Any:
        return getattr(self.theirs, "constraint", None)

    @property
    def _stored(self) -> Any:
        if hasattr(self.theirs, "_raw_value"):  # nnx, which deprecates `value`
            return self.theirs._raw_value
        return self.theirs._value if _is_keras(self.theirs) else self.theirs.value

    @_stored.setter
    def _stored(self, x: Any) -> None:
        if hasattr(self.theirs, "_raw_value"):  # bypasses nnx's check of the trace: the old value is put back later
            object.__setattr__(self.theirs, "_raw_value", x)
        elif _is_keras(self.theirs):
            self.theirs._value = x
        elif hasattr(self.theirs, "assign"):
            self.theirs.assign(x)
        else:
            self.theirs.value = x

    def __reduce__(self):
        return as_variable, (self.theirs,)

    def __deepcopy__(self, memo):
        return self


def as_variable(variable: Any) -> Variable:
    """Returns the variable, or its only view if it is another library's. Raises TypeError for anything else."""
    if isinstance(variable, Variable):
        return variable
    if not is_variable(variable):
        raise TypeError(f"not a variable: {variable!r}")
    view = _known.get(id(variable))
    if view is None:
        view = _known[id(variable)] = Foreign(variable)
    return view


def unwrap(variable: Variable) -> Any:
    """Returns the variable as the user passed it."""
    return variable.theirs if isinstance(variable, Foreign) else variable


def all_ours(variables: Iterable[Any]) -> list[Variable]:
    return [as_variable(v) for v in variables]


def is_variable(x: Any) -> bool:
    """Returns whether `x` holds an array that can be replaced."""
    if isinstance(x, Variable) or _is_keras(x) or hasattr(x, "_raw_value"):
        return True
    return hasattr(x, "value") and (hasattr(x, "assign") or _is_settable(type(x), "value"))


def _is_settable(cls: type, name: str) -> bool:
    attribute = getattr(cls, name, None)
    return not callable(attribute) and (not isinstance(attribute, property) or attribute.fset is not None)


def _keras() -> Any:
    """Returns the keras module if it has been imported, else None."""
    keras = sys.modules.get("keras")
    return keras if hasattr(keras, "StatelessScope") else None


def _is_keras(x: Any) -> bool:
    keras = _keras()
    return keras is not None and isinstance(x, keras.Variable)


@contextmanager
def _watch_keras() -> Iterator[None]:
    """Records reads of Keras's variables and assignments to them, as for ours."""
    keras = _keras()
    if keras is None or keras.backend.backend() != "jax":
        yield
        return

    class Watch(keras.StatelessScope):
        def get_current_value(self, variable):
            if variable._value is not None:
                view = as_variable(variable)
                recording.note_read(view)
                return view._value

        def add_update(self, update):
            variable, value = update
            as_variable(variable)._value = value

    with Watch(initialize_variables=False):
        yield


recording.watchers.append(_watch_keras)
