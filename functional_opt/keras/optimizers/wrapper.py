"""Wrapper: an optimizer that delegates to others, each with its own variables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ...core.transformation import increment
from ..variables.foreign import all_ours, as_variable
from ..variables.variable import Variable
from .optimizer import Optimizer
from .configs import as_arguments
from .slots import Variables
from ..engine.step import Step


@dataclass(frozen=True)
class Parts(Step):
    """The steps of several optimizers; numbers, states and values are tuples with one part for each.

    The clock is that of the wrapper, followed by those of the parts. A part whose step is None has no gradients and
    stays unchanged.
    """

    steps: tuple[Step | None, ...]

    def __call__(self, numbers, values, state, clock, idle, grads):
        whole, *clocks = clock
        done = [
            (values[i], state[i], clocks[i])
            if step is None or not jax.tree.leaves(grads[i])
            else step(numbers[i], values[i], state[i], clocks[i], idle[i], grads[i])
            for i, step in enumerate(self.steps)
        ]
        values, state, clocks = zip(*done, strict=True)
        return values, state, (increment(whole), *clocks)


class Wrapper(Optimizer):
    """Base of optimizers that wrap others. The inner optimizers keep the slots; each one gets its variables.

    A subclass returns from `_part_of` the index in `_parts` that a variable belongs to.
    """

    default_dialect = "keras3"
    _parts: list[Optimizer]

    def __init__(self, name: str | None, **kwargs: Any):
        self._nested = self._flat = None  # the parts have states, the wrapper has none
        self._parts = []
        super().__init__(name, **kwargs)
        self._rate = Variable(0.0, trainable=False, name=f"{self._name}/learning_rate")  # Keras has it, unused

    def _part_of(self, variable: Variable) -> int:
        raise NotImplementedError

    def transform(self, hyper):
        raise TypeError(f"{type(self).__name__} has no transformation of its own; use those of its inner optimizers")

    def _each(self, variables: Sequence[Variable], *more: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """Yields each part with its variables and the items that belong to them."""
        where = [self._part_of(v) for v in variables]
        for i, part in enumerate(self._parts):
            yield part, *([x for x, at in zip(xs, where, strict=True) if at == i] for xs in (variables, *more))

    # Inputs and results of a step

    def _build_once(self, variables):
        for part, own in self._each(variables):
            part._build_once(own)

    def _gradients(self, pairs, variables, aggregate=True):
        grads = super()._gradients(pairs, variables, aggregate)
        aggregate = aggregate and self.axis_name is None and self.gradient_aggregator is None  # else it has been done
        found: dict[int, list] = {}
        for part, own, gs in self._each(variables, grads):
            if any(g is not None for g in gs):
                gs = part._gradients(list(zip(gs, own, strict=True)), own, aggregate)
            for g, v in zip(gs, own, strict=True):
                found.setdefault(id(v), []).append(g)
        return [found[id(v)].pop(0) for v in variables]

    def _ready(self, variables):
        self._register([v for v in variables if id(v) not in self._keys])
        numbers = tuple(part._ready(own) if own or part.built else None for part, own in self._each(variables))
        if self._pending_weights is not None:
            self._assign_weights(self._pending_weights)
            self._pending_weights = None
        return numbers

    @property
    def _packs(self) -> bool:
        return False

    @property
    def _state(self) -> Any:
        return tuple(part._state for part in self._parts)

    @_state.setter
    def _state(self, state: Any) -> None:
        for part, s in zip(self._parts, state or (), strict=False):
            part._state = s

    def _plan(self, variables) -> Step:
        return Parts(tuple(part._plan(own) if own else None for part, own in self._each(variables)))

    def _clock(self):
        return self._iterations._value, *(part._clock() for part in self._parts)

    def _store(self, state, clock):
        self._iterations._value, *clocks = clock
        for part, s, c in zip(self._parts, state, clocks, strict=True):
            if s is not None:
                part._store(s, c)

    def _by_variable(self, variables, values):
        return tuple(part._by_variable(own, xs) for part, own, xs in self._each(variables, values))

    def _listed(self, variables, values):
        found = {}
        for x, (part, own) in zip(values, self._each(variables), strict=True):
            found |= dict(zip(map(id, own), part._listed(own, x), strict=True))
        return [found[id(v)] for v in variables]

    def _idle(self, variables):
        return tuple(part._idle(own) for part, own in self._each(variables))

    def _snapshot(self):
        return super()._snapshot(), [part._snapshot() for part in self._parts]

    def _restore(self, snapshot):
        own, parts = snapshot
        super()._restore(own)
        for part, s in zip(self._parts, parts, strict=False):  # a failed step may have added a part
            part._restore(s)

    def _detach(self):
        for part in self._parts:
            part._detach()

    # The public interface

    @property
    def built(self) -> bool:
        return any(part.built for part in self._parts)

    @property
    def variables(self) -> Variables:
        """The wrapper's own variables, then those of each inner optimizer."""
        return Variables([*self._counters(), *(v for part in self._parts for v in part.variables)])

    def _counters(self):
        return [self._iterations, self._rate]

    def get_slot_names(self):
        return list(dict.fromkeys(name for part in self._parts for name in part.get_slot_names()))

    def get_slot(self, var, slot_name):
        return self._parts[self._part_of(as_variable(var))].get_slot(var, slot_name)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        super().exclude_from_weight_decay(var_list, var_names)  # for parts that come later
        for part in self._parts:
            part.exclude_from_weight_decay(var_list, var_names)

    def averaged_params(self, var_list=None):
        given = list(self._variables.values()) if var_list is None else all_ours(var_list)
        return [self._parts[self._part_of(v)].averaged_params([v])[0] for v in given]

    def finalize_variable_values(self, var_list):
        for part in self._parts:
            part.finalize_variable_values(var_list)


def divided(grads: Any, scale: Any) -> Any:
    """Divides all gradients by a number, but not the indices of sparse ones."""
    return jax.tree.map(lambda g: g if jnp.issubdtype(jnp.result_type(g), jnp.integer) else g / scale, grads)


def refuse_loss_scale(argument: str, optimizer: Optimizer) -> None:
    """Raises ValueError if an inner optimizer has a loss scale: it would divide the gradients again."""
    if optimizer.loss_scale_factor is not None or isinstance(optimizer.__dict__.get("dynamic_scale"), Variable):
        raise ValueError(f"{argument} has a loss scale of its own; set one on the outermost optimizer only")


def required_entry(cls: type, key: str, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Returns an entry of a config, and the other entries. Raises what `as_arguments` does."""
    config = as_arguments(cls, config, key)
    return config[key], {k: x for k, x in config.items() if k != key}
