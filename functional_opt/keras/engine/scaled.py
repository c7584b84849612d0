"""The engine of an optimizer with a dynamic loss scale."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...transforms.wrapping.loss_scale import next_scale
from ..variables import recording, undo
from ..variables.variable import Variable
from .engine import Engine
from .several import divided
from .step import Step


class Scaling(NamedTuple):
    """The loss scale (`scale`), and the number of steps since it was changed (`counter`)."""

    counter: jax.Array
    scale: jax.Array


def adjusted(scaling: Scaling, finite: jax.Array, growth_steps: int) -> Scaling:
    """Returns the scale of the next step: twice as large after enough finite steps, half as large after another."""
    smallest = float(jnp.finfo(scaling.scale.dtype).tiny)
    scale, counter = next_scale(scaling.scale, scaling.counter, finite, growth_steps, smallest)
    return Scaling(counter, scale)


def all_finite(grads: Any) -> jax.Array:
    """Returns whether all floats among the gradients are finite."""
    floats = [g for g in jax.tree.leaves(grads) if jnp.issubdtype(g.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(g)) for g in floats]))


@dataclass(frozen=True)
class Scaled(Step):
    """A step that is skipped unless all gradients are finite. Its state is a `Scaling`, then the inner state.

    `numbers` says whether the gradients were divided by the scale before (None: not yet), then the inner numbers.
    """

    inner: Step
    growth_steps: int

    def __call__(self, numbers, values, state, clock, idle, grads):
        divided_before, numbers = numbers
        scaling, inner = state
        grads = divided(grads, scaling.scale) if divided_before is None else grads
        finite = all_finite(grads)
        values, inner, clock = jax.lax.cond(
            finite,
            lambda: self.inner(numbers, values, inner, clock, idle, grads),
            lambda: (values, inner, clock),
        )
        return values, (adjusted(scaling, finite, self.growth_steps), inner), clock


class ScaledEngine(Engine):
    """An engine that divides gradients by a loss scale, and skips the step of the inner engine if they overflow."""

    def __init__(self, inner: Engine, counter: Variable, scale: Variable, growth_steps: int):
        self.inner, self.counter, self.scale, self.growth_steps = inner, counter, scale, growth_steps
        self.divided_before = False
        self.once_built: Callable[[], None] | None = None
        """Is called when the state exists."""

    @property
    def iterations(self):
        return self.inner.iterations

    @iterations.setter
    def iterations(self, variable):
        self.inner.iterations = variable

    @property
    def built(self):
        return self.inner.built

    def cells(self):
        return [self.counter, self.scale, *self.inner.cells()]

    def counters(self):
        return [self.iterations, self.counter, self.scale, *self.inner.counters()]

    def known(self):
        return self.inner.known()

    def is_known(self, variable):
        return self.inner.is_known(variable)

    def prepare(self, variables):
        undo.undo_with(lambda: functools.partial(self.restore, self.snapshot()))
        numbers = self.inner.prepare(variables)
        if self.once_built is not None:
            with recording.paused():  # at once, of what is there before the program
                self.once_built()
            self.once_built = None
        return () if self.divided_before else None, numbers

    def step(self, variables):
        return Scaled(self.inner.step(variables), self.growth_steps)

    def moving(self, variables):
        return self.inner.moving(variables)

    def gather(self, variables, values):
        return self.inner.gather(variables, values)

    def scatter(self, variables, values):
        return self.inner.scatter(variables, values)

    def idle(self, variables):
        return self.inner.idle(variables)

    def state(self):
        return Scaling(self.counter._value, self.scale._value), self.inner.state()

    def clock(self):
        return self.inner.clock()

    def keep(self, state, clock):
        scaling, inner = state
        self.counter._value, self.scale._value = scaling
        self.inner.keep(inner, clock)

    def detach(self):
        self.inner.detach()

    def snapshot(self):
        return self.counter._value, self.scale._value, self.once_built, self.inner.snapshot()

    def restore(self, snapshot):
        self.counter._value, self.scale._value, self.once_built, inner = snapshot
        self.inner.restore(inner)
