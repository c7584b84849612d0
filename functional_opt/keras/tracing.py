"""Runs Python code that reads and assigns variables as a pure function of their values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import jax
from jax.extend.core import get_opaque_trace_state

Steps = Mapping[int, Sequence[jax.Array]]
"""By the id of a variable, what is added to the rows of each `sparse_read` of it, in order."""


class Scope:
    """What code that ran in it read and assigned: variables by id, in order."""

    def __init__(self, steps: Steps):
        self.reads: dict[int, Any] = {}
        self.read_whole: set[int] = set()  # those of which more than rows was read
        self.rows: dict[int, list[jax.Array]] = {}  # the indices of each sparse_read
        self.before: dict[int, tuple[Any, Any]] = {}  # of each variable assigned to, what it held
        self.steps = steps
        self.trace = get_opaque_trace_state()

    @property
    def writes(self) -> list[Any]:
        return [v for v, _ in self.before.values()]


class Call(NamedTuple):
    """What a function returned, and what it did to variables."""

    out: Any
    reads: dict[int, Any]
    rows: dict[int, list[jax.Array]]
    """The indices that variables were read at, of those that were read in no other way."""
    written: dict[int, tuple[Any, Any]]
    """(variable, new value) by id."""


watchers: list[Callable[[], AbstractContextManager]] = []
"""What else is entered while code is recorded: how variables of other libraries are watched."""
_scopes: list[Scope] = []


def active() -> bool:
    """Whether anything is being recorded."""
    return bool(_scopes)


def note_read(variable: Any) -> None:
    """Called by a variable when its value is taken."""
    for scope in _scopes if not variable._stand_in else ():
        scope.reads.setdefault(id(variable), variable)
        scope.read_whole.add(id(variable))


def note_write(variable: Any) -> None:
    """Called by a variable before another value is put in place."""
    for scope in _scopes if not variable._stand_in else ():
        scope.before.setdefault(id(variable), (variable, variable._value))


def read_rows(variable: Any, indices: jax.Array) -> jax.Array:
    """Rows of a variable, and the step added to them that the loss is differentiated by.

    Inside another trace (a `jax.jit` or `lax.scan` in the loss), whose indices are of no use outside of it, the
    rows are read from the whole array.
    """
    scope = _scopes[-1] if _scopes else None
    if scope is None or variable._stand_in or scope.trace != get_opaque_trace_state():
        return variable.value[indices]
    for s in _scopes:
        s.reads.setdefault(id(variable), variable)
    noted = scope.rows.setdefault(id(variable), [])
    noted.append(indices)
    rows = variable._value[indices]
    steps = scope.steps.get(id(variable), ())
    step = steps[len(noted) - 1] if len(noted) <= len(steps) else None
    return rows if step is None or step.shape != rows.shape else rows + step


@contextmanager
def recording(steps: Steps | None = None) -> Iterator[Scope]:
    """Notes reads and assignments, and undoes the latter when left, however it is left."""
    scope = Scope(steps or {})
    _scopes.append(scope)
    try:
        with ExitStack() as stack:
            for watch in watchers:
                stack.enter_context(watch())
            yield scope
    finally:
        _scopes.remove(scope)
        for variable, value in scope.before.values():
            variable._value = value


def call(
    fn: Callable, variables: Sequence[Any], values: Sequence[Any], *args: Any, steps: Steps | None = None
) -> Call:
    """`fn(*args)` with other values in the variables; all variables are as they were after."""
    with recording(steps) as scope:
        for variable, value in zip(variables, values, strict=True):
            note_write(variable)
            variable._value = value
        given = {id(v): x for v, x in zip(variables, values, strict=True)}
        out = jax.tree.map(lambda x: x, fn(*args))  # a variable in it, with what it holds now
        written = {id(v): (v, v._value) for v in scope.writes if v._value is not given.get(id(v))}
        rows = {i: r for i, r in scope.rows.items() if i not in scope.read_whole}
        return Call(out, scope.reads, rows, written)
