"""Rejects a state that another transformation made, before `update` reads any of it.

A transformation need not declare its state: `init` of an empty tree, traced once per transformation, gives the class.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

_BUILTIN = (tuple, list, dict, type(None), jax.ShapeDtypeStruct)
"""Classes that any transformation's state may have, such as those of params: only the transformation can check it."""

_MISSING = object()
CACHED = "_state_class"
"""The attribute in which a transformation caches the class of its state, beside its fields."""


def checks_state(method: Callable) -> Callable:
    """Wraps `update`, or another method whose second argument is the state, in a check of that state's class."""
    state_first = method.__name__ != "update"

    @functools.wraps(method)
    def checked(self, *args, **kwargs):
        place = 0 if state_first else 1
        state = args[place] if len(args) > place else kwargs.get("state", _MISSING)
        # no check if an override calls this method: the state is then whatever the override passes on
        if state is not _MISSING and getattr(type(self), method.__name__) is checked:
            cls = self.__dict__.get(CACHED, _MISSING)
            if cls is _MISSING:
                cls = self.__dict__[CACHED] = self._state_class()
            if cls is not None and type(state) is not cls and not _is_one(state, cls):
                raise ValueError(wrong_state(type(self).__name__, _with_article(_named(cls)), state))
        return method(self, *args, **kwargs)

    return checked


def state_class(tx: Any) -> type | None:
    """Returns the class of a transformation's state if it is one of its own; None if any state is accepted.

    >>> from functional_opt import chain, trace
    >>> state_class(trace(0.9)).__name__, state_class(chain(trace(0.9)))
    ('TraceState', None)
    """
    try:
        structure = jax.tree.structure(tx)  # the class does not depend on the numbers
        if structure not in _known:
            if len(_known) >= 1024:
                _known.clear()
            found = type(jax.eval_shape(lambda: tx.init({})))
            _known[structure] = None if found in _BUILTIN else found
        return _known[structure]
    except Exception:  # unknown: `init` does not take an empty tree, or `tx` is not a pytree
        return None


_known: dict[Any, type | None] = {}


def _is_one(state: Any, cls: type) -> bool:
    """Returns whether a state is of a class, or of one with its name and fields: Optax's, or a reloaded module's.

    A transformation that keeps no state accepts any tree without leaves.
    """
    if isinstance(state, cls):
        return True
    fields = getattr(cls, "_fields", None)
    if fields == () and not jax.tree.leaves(state):
        return True
    return fields == getattr(type(state), "_fields", _MISSING) and cls.__name__ == type(state).__name__


def _with_article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


def wrong_state(who: str, expected: str, got: Any) -> str:
    """Returns the error message for a state that `init` did not make, with a remedy."""
    return (
        f"{who}.update: the state must be {expected}, as {who}.init makes it; got {_described(got)}. Pass the state "
        "that this transformation's init or last update returned, and restore a saved state into the structure of "
        "tx.init(params)"
    )


def _described(state: Any) -> str:
    if hasattr(state, "_fields"):
        return _with_article(_named(type(state)))
    if isinstance(state, dict):
        return f"a dict with the keys {[*state][:8]}"
    if isinstance(state, tuple | list):
        return f"a {type(state).__name__} of {len(state)}"
    return "None" if state is None else f"a value of type {type(state).__name__}"


def _named(cls: type) -> str:
    """Returns a class with its fields, such as `TraceState(trace)`."""
    fields = getattr(cls, "_fields", None)
    return cls.__name__ if fields is None else f"{cls.__name__}({', '.join(fields)})"
