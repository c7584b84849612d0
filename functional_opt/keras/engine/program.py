"""Compiles Python code that reads and assigns variables and optimizers: `function` and what is built on it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import core

from ..variables import recording, undo
from ..variables.recording import BUSY, Cell
from . import transaction
from .arguments import Arguments
from .store import Store

Wrap = Callable[[Callable], Callable]
TRIES = 4


class Program:
    """A function of arrays that may read and assign variables and optimizers, compiled with all that it touches.

    Args:
        fn: the function. It runs while it is traced: once for each structure and shape of its arguments, and again
            if something has changed that it depends on, such as which variables are trainable.
        wrap: wraps the pure function before it is compiled, for example in `jax.shard_map`. It takes lists of
            arrays: donated and other values of variables, numbers, arguments; it returns what is assigned, and the
            result.
    """

    def __init__(self, fn: Callable, wrap: Wrap = lambda pure: pure):
        self._fn, self._wrap = fn, wrap
        self._traces: dict[Any, list[_Trace]] = {}
        self._made_variables: set[Any] = set()  # signatures whose first call made variables

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = Arguments(args, kwargs)
        if recording.active() or any(isinstance(x, core.Tracer) for x in given.arrays):
            return self._fn(*args, **kwargs)  # it becomes a part of the program that is being traced
        with BUSY.lock:
            return undo.undoing(transaction.stored, lambda: self._run(given, args, kwargs))

    def _run(self, given: Arguments, args: tuple, kwargs: dict[str, Any]) -> Any:
        if (trace := self._trace_of(given)) is None:
            out = self._fn(*args, **kwargs)
            self._made_variables.add(given.signature())
            return out
        try:
            return trace.run(given.arrays)
        except BaseException:
            if not trace.warm:  # what it was traced with is undone
                self._traces.pop(given.signature(), None)
            raise

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """Lowers the program for such arguments, as `jax.jit(...).lower`, to inspect its code, cost and memory."""
        given = Arguments(args, kwargs)
        with BUSY.lock:
            trace = self._trace_of(given)
            if trace is None:
                raise RuntimeError("call the function once before: it makes variables at its first call")
            return trace.lower(given.arrays)

    def _trace_of(self, given: Arguments) -> "_Trace | None":
        """Returns a trace that holds for these arguments now; None if the function must run as it is, once."""
        signature = given.signature()
        traces = self._traces.setdefault(signature, [])
        for trace in traces:
            if trace.holds():
                return trace
        try:
            trace = _Trace(self._fn, self._wrap, given, traces[-1] if traces else None)
        except recording.MadeOfTraced:
            if signature in self._made_variables:
                raise RuntimeError(
                    f"{_name(self._fn)} makes variables of computed values at every call; make them at the first only"
                ) from None
            return None
        traces.append(trace)
        del traces[:-16]
        return trace


class _Trace:
    """A function traced for arguments of one signature: what it touches, what it depends on, and its program."""

    def __init__(self, fn: Callable, wrap: Wrap, given: Arguments, last: "_Trace | None"):
        self._fn, self._wrap = fn, wrap
        self._rebuilt = given.rebuild()
        self.cells: list[Cell] = []  # that it reads
        self.assigned: list[Cell] = []  # of these, those that it assigns
        self.lifted: list[tuple[Any, Callable[[], Any]]] = []  # inputs that are computed at each call
        self.current: list[Any] = []  # these inputs, for the next call
        self.guards: list[tuple[Callable[[], Any], Any]] = []  # what it depends on besides, and its value
        self.memo: dict[Any, Any] = {}  # what recorded code notes for the next time that it is traced
        self.warm = self.calls_back = self._discovering = False
        self._touched: list[Cell] = []  # by the code in the present trace, and of these, what it assigns
        self._now_assigned: list[Cell] = []
        if last is None:
            self._discover(given.arrays)
        else:  # something has changed, but most of it is as it was
            self.cells, self.assigned, self.memo = last.cells, last.assigned, last.memo
            self._now_lifted, self._now_computed = last.lifted, [compute() for _, compute in last.lifted]
        self._compile(given.arrays)

    # Tracing

    def _discover(self, arrays: list[Any]) -> None:
        """Traces the function with what the cells hold as constants, to find out which it touches."""
        self._discovering = True
        jax.eval_shape(self._wrap(self._pure), [], [], [], arrays)
        self._discovering = False
        self.cells, self.assigned = self._touched, self._now_assigned

    def _compile(self, arrays: list[Any]) -> None:
        """Traces the function again, with what the cells hold as inputs, until these are all that it touches."""
        for _ in range(TRIES):
            self.lifted, self.current = list(self._now_lifted), list(self._now_computed)
            self.trees = self._present_trees()
            self.lifted_tree = jax.tree.structure(self.current)
            self.donating = jax.jit(_in_one_list(self._wrap(self._pure)), donate_argnums=0)
            inputs = self._inputs()
            jaxpr = self.donating.trace(*inputs, arrays).jaxpr
            found, assigned = self._touched, self._now_assigned
            known = set(map(id, self.cells))
            same_inputs = [key for key, _ in self._now_lifted] == [key for key, _ in self.lifted]
            same_inputs = same_inputs and self._present_trees() == self.trees  # tracing may make or drop slots
            if same_inputs and known.issuperset(map(id, found)) and _ids(assigned) == _ids(self.assigned):
                self.calls_back = transaction.calls_back(jaxpr.jaxpr)
                self.plain = jax.jit(_in_one_list(self._wrap(self._pure))) if self.calls_back else self.donating
                return
            self.cells = [*self.cells, *(c for c in found if id(c) not in known)]
            self.assigned = assigned
        raise RuntimeError(f"{_name(self._fn)} reads or assigns other variables each time it is traced")

    def _pure(self, donated: list, kept: list, lifted: list, arrays: list) -> tuple[list[Any], list[Any]]:
        """The function of the values of the cells. Returns what it assigns, and its result."""
        assigned = set(map(id, self.assigned))
        read_only = [c for c in self.cells if id(c) not in assigned]
        self._now_lifted: list[tuple[Any, Callable[[], Any]]] = []
        self._now_computed: list[Any] = []
        self.guards = []

        def run(scope: recording.Scope) -> tuple[Any, list[Any]]:
            scope.lift = functools.partial(self._lift, lifted)
            scope.guards, scope.memo = self.guards, self.memo
            scope.discovers = self._discovering
            if not self._discovering:
                leaves = iter(donated)
                for c, tree in zip(self.assigned, self.trees, strict=True):
                    scope.give(c, tree.unflatten([next(leaves) for _ in range(tree.num_leaves)]))
                for c, x in zip(read_only, kept, strict=True):
                    scope.give(c, x)
            args, kwargs = self._rebuilt(arrays)
            out = jax.tree.map(lambda x: x, self._fn(*args, **kwargs))
            made = {id(v) for v in scope.made}
            touched = [c for c in scope.touched.values() if not c._stand_in and id(c) not in made]
            written = [c for c in touched if id(c) in scope.assigned]
            written += [c for c in scope.assigned.values() if id(c) not in scope.touched and id(c) not in made]
            order = {id(c): i for i, c in enumerate(self.assigned)}
            written.sort(key=lambda c: order.get(id(c), len(order)))
            self._touched = [*touched, *(c for c in written if id(c) not in scope.touched)]
            self._now_assigned = written
            values = [_as_content(c, c._value) for c in written]
            return out, values

        out, values = recording.recorded(run)
        leaves, self.out_tree = jax.tree.flatten(out)
        return jax.tree.leaves(values), leaves

    def _lift(self, given: list, key: Any, compute: Callable[[], Any]) -> Any:
        n = len(self._now_lifted)
        self._now_lifted.append((key, compute))
        if n < len(given) and self.lifted[n][0] == key:
            self._now_computed.append(self.current[n])
            return given[n]
        with recording.paused():
            self._now_computed.append(compute())
        return self._now_computed[-1]

    # Running

    def holds(self) -> bool:
        """Returns whether everything is as it was when the function was traced."""
        if any(compute() != value for compute, value in self.guards):
            return False
        self.current = [compute() for _, compute in self.lifted]
        return self._present_trees() == self.trees and jax.tree.structure(self.current) == self.lifted_tree

    def _present_trees(self) -> list[Any]:
        return [jax.tree.structure(_content(c)) for c in self.assigned]

    def _inputs(self) -> tuple[list, list, list]:
        assigned = set(map(id, self.assigned))
        donated = jax.tree.leaves([_content(c) for c in self.assigned])
        return donated, [_content(c) for c in self.cells if id(c) not in assigned], self.current

    def run(self, arrays: list[Any]) -> Any:
        donated, kept, lifted = self._inputs()
        out: list[Any] = []

        def store(results: list[jax.Array]) -> None:
            leaves = iter(results)
            for c, tree in zip(self.assigned, self.trees, strict=True):
                c._stored = tree.unflatten([next(leaves) for _ in range(tree.num_leaves)])
            out[:] = leaves

        if self.calls_back:
            transaction.run_with_callbacks(self.plain, donated, (kept, lifted, arrays), store)
        else:
            others = kept, lifted, arrays
            transaction.run(self.donating, self.assigned, donated, others, store, warm=self.warm)
        self.warm = True
        return self.out_tree.unflatten(out)

    def lower(self, arrays: list[Any]) -> jax.stages.Lowered:
        return self.donating.lower(*self._inputs(), arrays)


def _in_one_list(fn: Callable) -> Callable:
    """Lets a function return one list: JAX makes it without running Python, which an exception could interrupt."""

    def program(*args: Any) -> list[Any]:
        assigned, out = fn(*args)
        return [*assigned, *out]

    return program


def _content(cell: Cell) -> Any:
    return cell.state if isinstance(cell, Store) else cell._settled()


def _as_content(cell: Cell, x: Any) -> Any:
    return cell.state if isinstance(cell, Store) else jnp.asarray(x)


def _ids(cells: Sequence[Cell]) -> set[int]:
    return set(map(id, cells))


def _name(fn: Callable) -> str:
    return getattr(fn, "__qualname__", type(fn).__name__)
