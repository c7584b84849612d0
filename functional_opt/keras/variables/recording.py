"""Runs Python code that reads and assigns variables as a pure function of their values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import jax
from jax.extend.core import get_opaque_trace_state

Steps = Mapping[int, Sequence[jax.Array]]
"""By variable id, the arrays to add to the rows of each `sparse_read` of the variable, in order."""


class Scope:
    """Records the variables that code reads and assigns, by id and in order."""

    def __init__(self, steps: Steps):
        self.reads: dict[int, Any] = {}
        self.read_whole: set[int] = set()  # also read in another way than by row
        self.rows: dict[int, list[jax.Array]] = {}  # the indices of each sparse_read
        self.before: dict[int, tuple[Any, Any]] = {}  # each variable assigned to, with its old value
        self.steps = steps
        self.trace = get_opaque_trace_state()

    @property
    def writes(self) -> list[Any]:
        return [v for v, _ in self.before.values()]


class Call(NamedTuple):
    """The result of a function call, with the variables that it read and assigned."""

    out: Any
    reads: dict[int, Any]
    rows: dict[int, list[jax.Array]]
    """The indices of each `sparse_read`, for variables that were read in no other way."""
    written: dict[int, tuple[Any, Any]]
    """(variable, new value) by id."""


watchers: list[Callable[[], AbstractContextManager]] = []
"""Make context managers to enter while code is recorded, which watch other libraries' variables."""
_scopes: list[Scope] = []


def active() -> bool:
    """Returns whether code is being recorded."""
    return bool(_scopes)


def note_read(variable: Any) -> None:
    """Records a read. A variable calls it when its value is taken."""
    for scope in _scopes if not variable._stand_in else ():
        scope.reads.setdefault(id(variable), variable)
        scope.read_whole.add(id(variable))


def note_write(variable: Any) -> None:
    """Records an assignment. A variable calls it before its value is replaced."""
    for scope in _scopes if not variable._stand_in else ():
        scope.before.setdefault(id(variable), (variable, variable._value))


def read_rows(variable: Any, indices: jax.Array) -> jax.Array:
    """Returns rows of a variable, plus the step with respect to which the loss is differentiated.

    Inside another trace (a `jax.jit` or `lax.scan` in the loss) the rows are read from the dense array, because the
    indices cannot be used outside of that trace.
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
    """Records reads and assignments, and undoes the assignments on exit, also after an error."""
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
    """Calls `fn(*args)` with other values in the variables, and restores all variables afterwards."""
    with recording(steps) as scope:
        for variable, value in zip(variables, values, strict=True):
            note_write(variable)
            variable._value = value
        given = {id(v): x for v, x in zip(variables, values, strict=True)}
        out = jax.tree.map(lambda x: x, fn(*args))  # a variable in the result keeps its present value
        written = {id(v): (v, v._value) for v in scope.writes if v._value is not given.get(id(v))}
        rows = {i: r for i, r in scope.rows.items() if i not in scope.read_whole}
        return Call(out, scope.reads, rows, written)
