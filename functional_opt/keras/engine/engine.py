"""Engine: what compiled and eager steps need of an optimizer, and the engine of a single one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp

from ..variables import recording, undo
from ..variables.recording import Cell
from ..variables.variable import Variable
from . import transaction
from .by_variable import ByVariable, completed, extend_state
from .step import Step, StepInputs, resolve_schedules
from .store import Store

T = TypeVar("T")


class Engine(Protocol):
    """Keeps variables, state and clock. An engine of several optimizers holds a part for each in all of them."""

    @property
    def iterations(self) -> Variable:
        """The count of steps."""
        ...

    @iterations.setter
    def iterations(self, variable: Variable) -> None: ...

    @property
    def built(self) -> bool: ...

    def cells(self) -> list[Cell]:
        """Returns what holds the arrays of the state, which a step may reuse."""
        ...

    def counters(self) -> list[Variable]:
        """Returns the scalar variables that a step counts with."""
        ...

    def known(self) -> list[Variable]:
        """Returns the variables seen so far, in their order."""
        ...

    def is_known(self, variable: Variable) -> bool: ...

    def prepare(self, variables: Sequence[Variable]) -> Any:
        """Makes the missing slots of these variables. Returns the present inputs of a step."""
        ...

    def step(self, variables: Sequence[Variable]) -> Step:
        """Returns the step of these variables, as the program is compiled for it."""
        ...

    def moving(self, variables: Sequence[Variable]) -> list[Variable]:
        """Returns the variables that a step with gradients for these ones changes."""
        ...

    def gather(self, variables: Sequence[Variable], values: Sequence[Any]) -> Any:
        """Returns values in the form in which a step takes them."""
        ...

    def scatter(self, variables: Sequence[Variable], values: Any) -> list[Any]:
        """Returns values from a step as a list: the inverse of `gather`."""
        ...

    def idle(self, variables: Sequence[Variable]) -> Any:
        """Returns the values of the variables that take no part."""
        ...

    def state(self) -> Any: ...

    def clock(self) -> Any:
        """Returns what counts the steps: `iterations`, or several of them."""
        ...

    def keep(self, state: Any, clock: Any) -> None:
        """Stores the results of a step."""
        ...

    def detach(self) -> None:
        """Copies the dicts of the state, so that assigning to slots does not change the original."""
        ...

    def snapshot(self) -> Any:
        """Returns everything that a step changes, except for the variables."""
        ...

    def restore(self, snapshot: Any) -> None: ...


class Rules(Protocol):
    """The methods of an optimizer that the engine of a single one calls."""

    use_ema: bool
    gradient_accumulation_steps: int | None
    dialect: str

    def _numbers(self) -> StepInputs:
        """Returns the inputs of a step: transformations and numbers, with the present hyperparameters."""
        ...

    def _plan(self, variables: Sequence[Variable]) -> Step:
        """Returns the step of these variables."""
        ...

    def _counters(self) -> list[Variable]:
        """Returns the variables besides slots that a step may change."""
        ...

    def _assign_weights(self, weights: Sequence[Any]) -> None: ...


class SingleEngine(Engine):
    """The engine of an optimizer with a transformation of its own."""

    def __init__(self, rules: Rules, iterations: Variable):
        self.rules, self.store = rules, Store()
        self._iterations = iterations

    @property
    def iterations(self) -> Variable:
        return self._iterations

    @iterations.setter
    def iterations(self, variable: Variable) -> None:
        self._iterations = variable

    @property
    def packs(self) -> bool:
        """True if an eager step can take lists and a packed state."""
        return not self._averages_all

    @property
    def _averages_all(self) -> bool:
        """True if a step also moves the running means of variables that have no gradient, as Keras 3 does."""
        return self.rules.use_ema and self.rules.dialect == "keras3"

    @property
    def built(self) -> bool:
        return self.store.built

    def cells(self):
        return [self.store]

    def counters(self):
        return [self.iterations]

    def known(self):
        return list(self.store.variables.values())

    def is_known(self, variable):
        return id(variable) in self.store.keys

    def prepare(self, variables):
        if not recording.active():
            return self._extended(variables)
        with recording.paused():  # slots are made at once, of what the variables hold before the program
            self._extended(variables)
            full = self.store.existing
        if (here := self.store.existing) is not full and jax.tree.structure(here) != jax.tree.structure(full):
            self.store.state = completed(here, full)
        return self.rules._numbers()

    def _extended(self, variables: Sequence[Variable]) -> StepInputs:
        store, rules = self.store, self.rules
        undo.undo_with(lambda: functools.partial(self.restore, self.snapshot()))
        new = store.register(variables)
        numbers = rules._numbers()
        rule = resolve_schedules(0, numbers.rule)
        # a reassigned hyperparameter may mean another transformation and other slots
        structure = jax.tree.structure(rule), rules.use_ema
        if new or not store.built or structure != store.structure:
            store.structure = structure
            known = list(store.variables.values())
            values = store.by_variable(known, [v._value for v in known])
            accumulate = rules.gradient_accumulation_steps is not None
            store.state = extend_state(rule, store.state, values, average=rules.use_ema, accumulate=accumulate)
            if store.pending_weights is not None:
                rules._assign_weights(store.pending_weights)
                store.pending_weights = None
        return numbers

    def step(self, variables):
        return self.rules._plan(variables)

    def moving(self, variables):
        if not self._averages_all:
            return list(variables)
        given = set(map(id, variables))
        return [*variables, *(v for v in self.store.variables.values() if id(v) not in given)]

    def gather(self, variables, values) -> ByVariable:
        return self.store.by_variable(variables, values)

    def scatter(self, variables, values):
        return self.store.listed(variables, values)

    def idle(self, variables):
        return self.store.idle(variables)

    def state(self):
        return self.store.state

    def clock(self):
        return self.iterations._value

    def keep(self, state, clock):
        self.store.state, self.iterations._value = state, clock

    def detach(self):
        self.store.detach()

    def snapshot(self):
        counters = [self.iterations, *self.rules._counters()]
        return self.store.snapshot(), [(v, v._value) for v in counters]

    def restore(self, snapshot):
        stored, counters = snapshot
        self.store.restore(stored)
        for v, x in counters:
            v._value = x


def undone_on_error(engine: Engine, step: Callable[[], T]) -> T:
    """Takes a step, and restores the engine if it fails; variables that were new to it are forgotten.

    A step whose results were stored has not failed, even if an exception came right after.
    """
    before, done = engine.snapshot(), transaction.stored()
    try:
        return step()
    except BaseException:
        if transaction.stored() == done:
            engine.restore(before)
        raise


def zero_iterations(name: str) -> Variable:
    """Returns a new count of steps."""
    return Variable(0, trainable=False, dtype=jnp.int32, name=name)
