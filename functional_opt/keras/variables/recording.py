"""Runs Python code that reads and assigns variables as a pure function of their values.

A value that recorded code assigns, or is given to start from, is kept in a scope of the thread that records, never in
the variable. So nothing has to be put back, whatever interrupts the code, and other threads see no tracers.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import jax
from jax import core
from jax.extend.core import get_opaque_trace_state

T = TypeVar("T")
Steps = Mapping[int, Sequence[jax.Array]]
"""By variable id, the arrays to add to the rows of each `sparse_read` of the variable, in order."""


class Busy:
    """Stands in a cell while a step may reuse the memory of its array. Readers wait until the step is done."""

    def __init__(self):
        self.lock = threading.RLock()
        self.kept: tuple[Sequence[Cell], Sequence[Any]] = (), ()
        """Cells, and what they held, for the code of the step itself: JAX may trace it again."""

    def wait_for(self, cell: "Cell") -> Any:
        """Returns what a cell holds after the step, or before it to the code that the step consists of."""
        with self.lock:
            x = cell._stored
            return next(y for c, y in zip(*self.kept, strict=True) if c is cell) if x is self else x


BUSY = Busy()
"""The one mark of all steps, whose lock a step holds from taking arrays to storing results."""


class Cell:
    """Something that holds a value: a variable, or the state of an optimizer.

    `_stored` is what every thread sees. `_value` is what the present thread sees: in recorded code, the value that
    was assigned or given there.
    """

    def __init__(self, value: Any):
        self._stored = value
        note_made(self)

    _swaps = False
    """Whether the cell is another library's, whose code reads `_stored` itself: recording puts values there."""
    _stand_in = False  # whether JAX unflattened it in recorded code, so that it is not the user's variable

    @property
    def _value(self) -> Any:
        scopes = _thread.scopes
        if scopes and not self._stand_in:
            for scope in scopes:
                scope.touched.setdefault(id(self), self)
            if not self._swaps:
                for scope in reversed(scopes):
                    if id(self) in scope.values:
                        return scope.values[id(self)]
        return self._settled()

    @_value.setter
    def _value(self, x: Any) -> None:
        if _thread.scopes and not self._stand_in:
            _thread.scopes[-1].put(self, x)
        else:
            self._stored = x

    def _settled(self) -> Any:
        """Returns what is stored, after any step that is under way."""
        return BUSY.wait_for(self) if (x := self._stored) is BUSY else x


class Scope:
    """Records the cells that code reads and assigns, by id and in order."""

    def __init__(self, rows: Steps):
        self.touched: dict[int, Cell] = {}  # all cells whose value was taken, also by this library's own code
        self.values: dict[int, Any] = {}  # present values of the cells that were given one or assigned
        self.assigned: dict[int, Cell] = {}
        self.reads: dict[int, Any] = {}  # variables whose value the user's code took
        self.read_whole: set[int] = set()  # also read in another way than by row
        self.rows: dict[int, list[jax.Array]] = {}  # the indices of each sparse_read
        self.before: dict[int, tuple[Cell, Any]] = {}  # what was stored in cells that swap
        self.made: list[Cell] = []
        self.notes: dict[int, dict[str, Any]] = {}  # by cell
        self.steps: dict[int, int] = {}  # taken so far, by the id of what counts them
        self.differentiated = 0  # the number of losses differentiated in it
        self.row_steps = rows
        self.trace = get_opaque_trace_state()
        self.ended = False
        # set for a program that is compiled:
        self.lift: Callable[[Any, Callable[[], Any]], Any] | None = None
        self.discovers = False  # whether it is only to be found out which cells the program touches
        self.guards: list[tuple[Callable[[], Any], Any]] = []
        self.memo: dict[Any, Any] = {}

    def give(self, cell: Cell, x: Any) -> None:
        """Gives a cell a value that counts as not assigned."""
        self.put(cell, x)
        del self.assigned[id(cell)]

    def put(self, cell: Cell, x: Any) -> None:
        self.assigned[id(cell)] = cell
        if cell._swaps:
            self.before.setdefault(id(cell), (cell, cell._stored))
            cell._stored = x
        else:
            self.values[id(cell)] = x


class Call(NamedTuple):
    """The result of a function call, with the variables that it read and the cells that it assigned."""

    out: Any
    reads: dict[int, Any]
    rows: dict[int, list[jax.Array]]
    """The indices of each `sparse_read`, for variables that were read in no other way."""
    written: dict[int, tuple[Any, Any]]
    """(cell, new value) by id."""


class _Thread(threading.local):
    scopes: tuple[Scope, ...] = ()


_thread = _Thread()
watchers: list[Callable[[], AbstractContextManager]] = []
"""Make context managers to enter while code is recorded, which watch other libraries' variables."""


def content(cell: Cell) -> Any:
    """Returns what a cell holds as a tree of arrays: of the state of an optimizer, unpacked."""
    return getattr(cell, "state", None) if hasattr(type(cell), "state") else cell._value


def active() -> bool:
    """Returns whether the present thread records."""
    return bool(_thread.scopes)


def may_assign() -> bool:
    """Returns whether a traced value can be assigned here: in a program, but not in a `jax.jit` or scan inside it."""
    return program() is not None and _thread.scopes[-1].trace == get_opaque_trace_state()


def is_assigned(cell: Cell) -> bool:
    """Returns whether code that is being recorded has assigned to a cell."""
    return any(id(cell) in scope.assigned for scope in _thread.scopes)


def note_read(variable: Any) -> None:
    """Records a read. A variable calls it when its value is taken."""
    for scope in _thread.scopes if not variable._stand_in else ():
        scope.reads.setdefault(id(variable), variable)
        scope.read_whole.add(id(variable))


class MadeOfTraced(Exception):
    """A variable is made of a traced value in a program that is being compiled: it could not outlive the program."""


def note_made(cell: Cell) -> None:
    """Records that a cell was made. Raises `MadeOfTraced`."""
    if program() is not None and isinstance(cell._stored, core.Tracer):
        raise MadeOfTraced
    for scope in _thread.scopes:
        scope.made.append(cell)


def program() -> Scope | None:
    """Returns the scope of the program that is being compiled, if any."""
    return next((scope for scope in reversed(_thread.scopes) if scope.lift is not None), None)


def depends_on(compute: Callable[[], Any]) -> Any:
    """Returns `compute()`. A program is traced again once it differs. It is computed of what cells hold outside."""
    scope = program()
    if scope is None:
        return compute()
    with paused():
        value = compute()
    scope.guards.append((compute, value))
    return value


def note_step(count: Cell) -> None:
    """Records that a step was taken that moves `count`."""
    if (scope := program()) is not None:
        scope.steps[id(count)] = scope.steps.get(id(count), 0) + 1


def steps_ahead(count: Cell) -> int:
    """Returns how many steps the program that is being compiled has taken so far."""
    scope = program()
    return 0 if scope is None else scope.steps.get(id(count), 0)


def notes_of(cell: Cell, outside: dict[str, Any]) -> dict[str, Any]:
    """Returns a dict of notes on a cell: that of the outermost scope, which ends with the trace, or `outside`."""
    return _thread.scopes[0].notes.setdefault(id(cell), {}) if _thread.scopes else outside


def lift(owner: Cell, key: Any, compute: Callable[[], Any]) -> Any:
    """Returns `compute()` as an input of the compiled program, which computes it outside of itself at each call.

    `owner` and `key` identify the input. The result is None outside of a program, and in one that has made the owner
    itself.
    """
    scope = program()
    if scope is None or any(cell is owner for cell in scope.made):
        return None
    assert scope.lift is not None
    return scope.lift((id(owner), key), compute)


def read_rows(variable: Any, indices: jax.Array) -> jax.Array:
    """Returns rows of a variable, plus the step with respect to which the loss is differentiated.

    Inside another trace (a `jax.jit` or `lax.scan` in the loss) the rows are read from the dense array, because the
    indices cannot be used outside of that trace.
    """
    scopes = _thread.scopes
    scope = scopes[-1] if scopes else None
    if scope is None or variable._stand_in or scope.trace != get_opaque_trace_state():
        return variable.value[indices]
    for s in scopes:
        s.reads.setdefault(id(variable), variable)
    noted = scope.rows.setdefault(id(variable), [])
    noted.append(indices)
    rows = variable._value[indices]
    steps = scope.row_steps.get(id(variable), ())
    step = steps[len(noted) - 1] if len(noted) <= len(steps) else None
    return rows if step is None or step.shape != rows.shape else rows + step


def recorded(run: Callable[[Scope], T], steps: Steps | None = None) -> T:
    """Runs code that reads and assigns variables. The assignments are in the scope, which it is given, only.

    This is no context manager: an interrupt at the start of `__exit__` would leave the thread recording.
    """
    scope, outer = Scope(steps or {}), _thread.scopes
    try:
        with ExitStack() as stack:
            for watch in watchers:
                stack.enter_context(watch())
            _thread.scopes = (*outer, scope)
            return run(scope)
    finally:
        _thread.scopes, scope.ended = outer, True
        for cell, x in scope.before.values():
            cell._stored = x


@contextmanager
def paused() -> Iterator[None]:
    """Lets code see and assign what is stored, and compute with it at once, also while a program is traced."""
    scopes, _thread.scopes = _thread.scopes, ()
    try:
        with jax.ensure_compile_time_eval():
            yield
    finally:  # long after, if `__exit__` was interrupted
        if not (_thread.scopes or any(scope.ended for scope in scopes)):
            _thread.scopes = scopes


def call(fn: Callable, cells: Sequence[Any], values: Sequence[Any], *args: Any, steps: Steps | None = None) -> Call:
    """Calls `fn(*args)` with other values in the cells. What it assigns is in the result, and nowhere else."""

    def run(scope: Scope) -> Call:
        for cell, value in zip(cells, values, strict=True):
            scope.put(cell, value)
        given = {id(v): x for v, x in zip(cells, values, strict=True)}
        out = jax.tree.map(lambda x: x, fn(*args))  # a variable in the result keeps its present value
        written = {i: (v, v._value) for i, v in scope.assigned.items()}
        written = {i: (v, x) for i, (v, x) in written.items() if x is not given.get(i)}
        rows = {i: r for i, r in scope.rows.items() if i not in scope.read_whole}
        return Call(out, scope.reads, rows, written)

    return recorded(run, steps)
