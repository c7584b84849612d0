"""Refuses a state that another transformation made, before the update reads anything of it.

A rule need not say what its state is: `init` of an empty tree, traced once for each transformation, gives the class.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

_BUILTIN = (tuple, list, dict, type(None), jax.ShapeDtypeStruct)
"""What may be the state of anything, a tree like the params among others: only its owner can tell."""

_MISSING = object()
CACHED = "_state_class"
"""Where a transformation keeps the class of its state, beside its fields."""


def checks_state(method: Callable) -> Callable:
    """Wraps `update`, or another method whose second argument is the state, in a check of that state's class."""
    state_first = method.__name__ != "update"

    @functools.wraps(method)
    def checked(self, *args, **kwargs):
        place = 0 if state_first else 1
        state = args[place] if len(args) > place else kwargs.get("state", _MISSING)
        # a method that an override calls gets what that override hands on
        if state is not _MISSING and getattr(type(self), method.__name__) is checked:
            cls = self.__dict__.get(CACHED, _MISSING)
            if cls is _MISSING:
                cls = self.__dict__[CACHED] = self._state_class()
            if cls is not None and type(state) is not cls and not _is_one(state, cls):
                raise ValueError(wrong_state(type(self).__name__, f"a {_named(cls)}", state))
        return method(self, *args, **kwargs)

    return checked


def state_class(tx: Any) -> type | None:
    """The class of a transformation's state, where that is one of its own; None where anything may be the state.

    >>> from functional_opt import chain, trace
    >>> state_class(trace(0.9)).__name__, state_class(chain(trace(0.9)))
    ('TraceState', None)
    """
    try:
        structure = jax.tree.structure(tx)  # numbers do not decide the class
        if structure not in _known:
            if len(_known) >= 1024:
                _known.clear()
            found = type(jax.eval_shape(lambda: tx.init({})))
            _known[structure] = None if found in _BUILTIN else found
        return _known[structure]
    except Exception:  # an `init` that does not take an empty tree does not tell, nor does what has no tree structure
        return None


_known: dict[Any, type | None] = {}


def _is_one(state: Any, cls: type) -> bool:
    """Whether a state is of a class, or of one of the same name and fields: Optax's, or that of a module reloaded.

    Nothing at all will do as the state of a transformation that keeps none.
    """
    if isinstance(state, cls):
        return True
    fields = getattr(cls, "_fields", None)
    if fields == () and not jax.tree.leaves(state):
        return True
    return fields == getattr(type(state), "_fields", _MISSING) and cls.__name__ == type(state).__name__


def wrong_state(who: str, expected: str, got: Any) -> str:
    """Says that a state is not the one that `init` makes, and what to do."""
    return (
        f"{who}.update: the state must be {expected}, as {who}.init makes it; got {_described(got)}. Pass the state "
        "that init or the last update of this very transformation returned, and restore a saved one into the "
        "structure of tx.init(params)"
    )


def _described(state: Any) -> str:
    if hasattr(state, "_fields"):
        return f"a {_named(type(state))}"
    if isinstance(state, dict):
        return f"a dict with the keys {[*state][:8]}"
    if isinstance(state, tuple | list):
        return f"a {type(state).__name__} of {len(state)}"
    return "None" if state is None else f"a value of type {type(state).__name__}"


def _named(cls: type) -> str:
    """`TraceState(trace)`: the class and its fields."""
    fields = getattr(cls, "_fields", None)
    return cls.__name__ if fields is None else f"{cls.__name__}({', '.join(fields)})"
