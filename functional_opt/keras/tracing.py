"""Runs Python code that reads and assigns variables as a pure function of their values."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax


class Scope:
    """What code that ran in it read and assigned: variables by id, in order."""

    def __init__(self):
        self.reads: dict[int, Any] = {}
        self.before: dict[int, tuple[Any, Any]] = {}  # of each variable assigned to, what it held

    @property
    def writes(self) -> list[Any]:
        return [v for v, _ in self.before.values()]


_scopes: list[Scope] = []


def active() -> bool:
    """Whether anything is being recorded."""
    return bool(_scopes)


def note_read(variable: Any) -> None:
    """Called by a variable when its value is taken."""
    for scope in _scopes if not variable._stand_in else ():
        scope.reads.setdefault(id(variable), variable)


def note_write(variable: Any) -> None:
    """Called by a variable before another value is put in place."""
    for scope in _scopes if not variable._stand_in else ():
        scope.before.setdefault(id(variable), (variable, variable._value))


@contextmanager
def recording() -> Iterator[Scope]:
    """Notes reads and assignments, and undoes the latter when left, however it is left."""
    scope = Scope()
    _scopes.append(scope)
    try:
        yield scope
    finally:
        _scopes.remove(scope)
        for variable, value in scope.before.values():
            variable._value = value


def call(fn: Callable, variables: Sequence[Any], values: Sequence[Any], *args: Any) -> tuple[Any, dict, dict]:
    """`fn(*args)` with other values in the variables.

    Returns what `fn` returned, the variables it read by id, and those it assigned to by id, each with its
    new value: `(out, {id: variable}, {id: (variable, value)})`. All variables are as they were after.
    """
    with recording() as scope:
        for variable, value in zip(variables, values, strict=True):
            note_write(variable)
            variable._value = value
        given = {id(v): x for v, x in zip(variables, values, strict=True)}
        out = jax.tree.map(lambda x: x, fn(*args))  # a variable in it, with what it holds now
        written = {id(v): (v, v._value) for v in scope.writes if v._value is not given.get(id(v))}
        return out, scope.reads, written
