"""The engine of several optimizers, each with its own variables."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ...core.transformation import increment
from ..variables import recording, undo
from ..variables.variable import Variable
from .engine import Engine
from .step import Step
from .store import Store


@dataclass(frozen=True)
class Parts(Step):
    """The steps of several optimizers; numbers, states and values are tuples with one part for each.

    The first of `numbers` is a loss scale or None, and the first of `clock` counts all steps; those of the parts
    follow. A part whose step is None has no gradients and stays unchanged.
    """

    steps: tuple[Step | None, ...]

    def __call__(self, numbers, values, state, clock, idle, grads):
        scale, *numbers = numbers
        whole, *clocks = clock
        if scale is not None:
            grads = divided(grads, scale)
        done = [
            (values[i], state[i], clocks[i])
            if step is None or not jax.tree.leaves(grads[i])
            else step(numbers[i], values[i], state[i], clocks[i], idle[i], grads[i])
            for i, step in enumerate(self.steps)
        ]
        values, state, clocks = zip(*done, strict=True)
        return values, state, (increment(whole), *clocks)


class SeveralEngine(Engine):
    """Divides variables among engines.

    Args:
        iterations: the count of all steps.
        engines: returns the engines, to which `route` may add.
        route: returns the index of a variable's engine.
        loss_scale: returns the number that gradients are divided by, or None.
    """

    def __init__(
        self,
        iterations: Variable,
        engines: Callable[[], Sequence[Engine]],
        route: Callable[[Variable], int],
        loss_scale: Callable[[], Any],
    ):
        self._iterations, self._engines, self._route, self._loss_scale = iterations, engines, route, loss_scale
        self._known = Store()  # of variables only: the engines have the states
        self.once_built: Callable[[], None] | None = None
        """Is called when the state exists."""

    @property
    def iterations(self):
        return self._iterations

    @iterations.setter
    def iterations(self, variable):
        self._iterations = variable

    def each(self, variables: Sequence[Variable], *more: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """Yields each engine with its variables and the items that belong to them."""
        where = [self._route(v) for v in variables]
        for i, engine in enumerate(self._engines()):
            yield engine, *([x for x, at in zip(xs, where, strict=True) if at == i] for xs in (variables, *more))

    @property
    def built(self):
        return any(engine.built for engine in self._engines())

    def cells(self):
        return [cell for engine in self._engines() for cell in engine.cells()]

    def counters(self):
        return [self.iterations, *(v for engine in self._engines() for v in engine.counters())]

    def known(self):
        return list(self._known.variables.values())

    def is_known(self, variable):
        return id(variable) in self._known.keys

    def prepare(self, variables):
        undo.undo_with(lambda: functools.partial(self.restore, self.snapshot()))
        self._known.register(variables)
        parts = [engine.prepare(own) if own or engine.built else None for engine, own in self.each(variables)]
        if self.once_built is not None:
            with recording.paused():  # at once, of what is there before the program
                self.once_built()
            self.once_built = None
        return self._loss_scale(), *parts

    def step(self, variables):
        return Parts(tuple(engine.step(own) if own else None for engine, own in self.each(variables)))

    def moving(self, variables):
        return [v for engine, own in self.each(variables) for v in (engine.moving(own) if own else ())]

    def gather(self, variables, values):
        return tuple(engine.gather(own, xs) for engine, own, xs in self.each(variables, values))

    def scatter(self, variables, values):
        found = {}
        for x, (engine, own) in zip(values, self.each(variables), strict=True):
            found |= dict(zip(map(id, own), engine.scatter(own, x), strict=True))
        return [found[id(v)] for v in variables]

    def idle(self, variables):
        return tuple(engine.idle(own) for engine, own in self.each(variables))

    def state(self):
        return tuple(engine.state() for engine in self._engines())

    def clock(self):
        return self.iterations._value, *(engine.clock() for engine in self._engines())

    def keep(self, state, clock):
        self.iterations._value, *clocks = clock
        for engine, s, c in zip(self._engines(), state, clocks, strict=True):
            if s is not None:
                engine.keep(s, c)

    def detach(self):
        for engine in self._engines():
            engine.detach()

    def snapshot(self):
        own = self.iterations, self.iterations._value, self._known.snapshot(), self.once_built
        return own, [engine.snapshot() for engine in self._engines()]

    def restore(self, snapshot):
        (iterations, count, known, self.once_built), parts = snapshot
        iterations._value = count
        self._known.restore(known)
        for engine, part in zip(self._engines(), parts, strict=False):  # a failed step may have added an engine
            engine.restore(part)


def divided(grads: Any, scale: Any) -> Any:
    """Divides all gradients by a number, but not the indices of sparse ones."""
    return jax.tree.map(lambda g: g if jnp.issubdtype(jnp.result_type(g), jnp.integer) else g / scale, grads)
