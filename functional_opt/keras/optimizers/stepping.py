"""Stepping: prepares the inputs of the compiled step of an optimizer, and stores its results.

An optimizer that wraps others overrides most of it: see `wrapper`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.transformation import EmptyState
from ...transforms.clipping.clip import clip_by_global_norm
from ..variables.foreign import as_variable, is_variable, unwrap
from ..variables.indexed_slices import IndexedSlices
from ..variables.variable import Variable
from ..engine.by_variable import ByVariable, State, extend_state
from ..engine.donation import donated_tree, to_donate
from ..engine.packing import Group, Packed
from ..engine.replicas import AxisName, summed
from .slots import SlotMethods
from ..engine.step import Rounds, Step, StepInputs, jitted_step, resolve_schedules

log = logging.getLogger(__name__)
_ARRAY = type(jnp.zeros(()))  # comparing types, as `isinstance(x, jax.Array)` takes thirty times as long

GradsAndVars = Sequence[tuple[Any, Any]]


class Stepping(SlotMethods):
    """The part of an optimizer that runs steps."""

    gradient_aggregator: Callable[[GradsAndVars], GradsAndVars] | None
    gradient_transformers: list[Callable[[GradsAndVars], GradsAndVars]]
    axis_name: AxisName | None
    global_clipnorm: float | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None
    use_ema: bool

    def _numbers(self) -> StepInputs:
        """Returns the inputs of a step: transformations and numbers, with the present hyperparameters."""
        raise NotImplementedError

    def _plan(self, variables: Sequence[Variable]) -> Step:
        """Returns the step of these variables, as the program is compiled for it."""
        raise NotImplementedError

    def build(self, var_list: Iterable[Any]) -> None:
        """Makes the slots of the variables now, rather than at the first step."""
        with self._undone_on_error():
            self._ready([as_variable(v) for v in var_list])

    def _build_once(self, variables: Sequence[Variable]) -> None:
        """Calls `build` before the first step if the user overrides it, as Keras 3 does."""
        if not self.built and type(self).build is not Stepping.build:
            self.build([unwrap(v) for v in variables])

    def _gradients(self, pairs: list[tuple], variables: Sequence[Variable], aggregate: bool = True) -> list[Any]:
        """Returns the gradients after the user's functions, one for each variable, None for a missing one."""
        present = [(g, unwrap(v)) for g, v in pairs if g is not None]
        if not present:
            raise ValueError(f"No gradients provided for any variable: {[v.name for v in variables]}.")
        if missing := [v.name for g, v in pairs if g is None]:
            log.warning("Gradients do not exist for variables %s when minimizing the loss.", missing)
        if aggregate and self.gradient_aggregator:
            present = self.gradient_aggregator(present)
        elif aggregate and self.axis_name is not None:
            present = zip(summed([g for g, _ in present], self.axis_name), (v for _, v in present), strict=True)
        for fn in self.gradient_transformers:
            present = fn(list(present))
        present = as_pairs(present)
        if self.global_clipnorm is not None and len({id(v) for _, v in present}) < len(present):
            present = _clipped_together(present, self.global_clipnorm * (self.loss_scale_factor or 1.0))
        queues: dict[int, list] = {}
        for g, v in present:
            shape = (v.shape[:1] + g.values.shape[1:]) if isinstance(g, IndexedSlices) else np.shape(g)
            if shape != v.shape:
                raise ValueError(f"the gradient of {v.name} has shape {shape}, the variable has {v.shape}")
            dtype = g.dtype if hasattr(g, "dtype") else np.asarray(g).dtype
            if not jnp.issubdtype(dtype, jnp.inexact):
                raise TypeError(f"the gradient of {v.name} must be floating-point, got {dtype}")
            if isinstance(g, IndexedSlices) and v.constraint is not None:
                raise RuntimeError(f"Cannot use a constraint function on a sparse variable: {v.name}")
            queues.setdefault(id(v), []).append(g)
        return [queues[id(v)].pop(0) if queues.get(id(v)) else None for v in variables]

    def _apply(self, grads: Sequence[Any], variables: Sequence[Variable]) -> None:
        """Runs one compiled step. A variable that is listed more than once takes part in several rounds of it."""
        rounds = _rounds([(g, v) for g, v in zip(grads, variables, strict=True) if g is not None])
        if not rounds:
            return
        variables = [v for _, v in rounds[0]]
        self._build_once(variables)
        with self._undone_on_error():
            numbers = self._ready(variables)
            if self._averages_all:
                known = set(map(id, variables))
                variables += [v for v in self._variables.values() if id(v) not in known]
            if self._packs and len(rounds) == 1:
                group = Group(self._variables, self._keys, variables)
                self._packed_step(group, numbers, [g for g, _ in rounds[0]])
                self._last = group
                return
            steps = [self._plan([v for _, v in pairs]) for pairs in rounds]
            each = [self._by_variable([v for _, v in pairs], [g for g, _ in pairs]) for pairs in rounds]
            values = self._by_variable(variables, to_donate([v._value for v in variables]))
            values, state, clock = jitted_step(
                steps[0] if len(rounds) == 1 else Rounds(tuple(steps)),
                numbers,
                values,
                donated_tree(self._state),
                self._clock(),
                self._idle(variables),
                each[0] if len(rounds) == 1 else tuple(each),
            )
            self._store(state, clock)
        for v, x in zip(variables, self._listed(variables, values), strict=True):
            v._value = x

    def _repeat(self, pairs: list[Any], aggregate: bool) -> bool:
        """Runs the step if it is like the last one, else returns False.

        That is: dense gradients of the same shapes for the same variables.
        """
        last = self._last
        if (
            last is None
            or aggregate
            and (self.gradient_aggregator or self.axis_name is not None)
            or self.gradient_transformers
            or not _are_pairs(pairs)
        ):
            return False
        grads, variables = zip(*pairs, strict=True)
        if (
            last.ids != tuple(map(id, variables))
            or set(map(type, grads)) != {_ARRAY}
            or last.shapes != [g.shape for g in grads]
        ):
            return False
        numbers = self._numbers()
        if jax.tree.structure(numbers.rule) != last.structure:
            return False
        self._packed_step(last, numbers, grads)
        return True

    def _packed_step(self, group: Group, numbers: StepInputs, grads: Sequence[Any]) -> None:
        arrays, packing = self._packed_state()
        values, arrays, self._iterations._value = jitted_step(
            Packed(self._plan(group.variables), group.layout(packing)),
            numbers,
            to_donate([v._value for v in group.variables]),
            arrays,
            self._iterations._value,
            [v._value for v in group.idle],
            [grads[i] for i in group.order],
        )
        self._keep_packed(arrays, packing)
        group.structure = jax.tree.structure(numbers.rule)
        for v, x in zip(group.variables, values, strict=True):
            v._value = x

    # Inputs and results of a step

    @property
    def _packs(self) -> bool:
        """True if an eager step can take lists and a packed state."""
        return not self._averages_all

    @property
    def _averages_all(self) -> bool:
        """True if a step also moves the running means of variables that have no gradient, as Keras 3 does."""
        return self.use_ema and self.dialect == "keras3"

    def _ready(self, variables: Sequence[Variable]) -> Any:
        """Makes the missing slots of these variables. Returns the present inputs of a step.

        Call it where its changes are undone if the step fails.
        """
        new = [v for v in variables if id(v) not in self._keys]
        self._register(new)
        numbers = self._numbers()
        rule = resolve_schedules(0, numbers.rule)
        structure = jax.tree.structure(rule)  # a reassigned hyperparameter may mean another transformation and slots
        if new or not self.built or structure != self._structure:
            self._structure = structure
            known = list(self._variables.values())
            everything = self._by_variable(known, [v._value for v in known])
            accumulate = self.gradient_accumulation_steps is not None
            self._state = extend_state(rule, self._state, everything, average=self.use_ema, accumulate=accumulate)
            if self._pending_weights is not None:
                self._assign_weights(self._pending_weights)
                self._pending_weights = None
        return numbers

    def _clock(self) -> Any:
        """Returns what counts the steps: `iterations`, or several of them."""
        return self._iterations._value

    def _store(self, state: State, clock: Any) -> None:
        """Stores the results of a step."""
        self._state, self._iterations._value = state, clock

    def _register(self, new: Sequence[Variable]) -> None:
        """Gives each variable its key in the state: its path, prefixed by a number if that is taken."""
        made = []
        for v in new:
            key, n = v.path, 1
            if key not in self._orphans:
                while key in self._variables:
                    n += 1
                    key = f"{n}/{v.path}"
                made.append(key)
            elif key in self._variables:
                self._keys.pop(id(self._variables[key]), None)
            self._orphans.discard(key)
            self._variables[key], self._keys[id(v)] = v, key
        if made:
            self._together.append(made)

    def _by_variable(self, variables: Sequence[Variable], values: Sequence[Any]) -> Any:
        """Returns the values of some variables as a step takes them, with None for all others in the state."""
        given = {self._keys[id(v)]: x for v, x in zip(variables, values, strict=True)}
        return ByVariable((key, given.get(key)) for key in self._variables)

    def _listed(self, variables: Sequence[Variable], values: Any) -> list[Any]:
        """Returns values from a step as a list: the inverse of `_by_variable`."""
        return [values[self._keys[id(v)]] for v in variables]

    def _idle(self, variables: Sequence[Variable]) -> Any:
        """Returns the values of all variables but these."""
        busy = {id(v) for v in variables}
        return ByVariable((key, v._value) for key, v in self._variables.items() if id(v) not in busy)

    # Undoing a failed step

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """Restores the optimizer if the step fails; variables that were new to it are forgotten."""
        before = self._snapshot()
        try:
            yield
        except BaseException:
            self._restore(before)
            raise

    def _snapshot(self) -> Any:
        """Returns everything that a step changes, except for the variables."""
        known = dict(self._variables), dict(self._keys), list(self._together), set(self._orphans)
        values = [(v, v._value) for v in (*self._counters(), *self._own_weights, *self._weights)]
        return known, self._structure, self._pending_weights, self._nested, self._flat, values

    def _restore(self, snapshot: Any) -> None:
        known, self._structure, self._pending_weights, self._nested, self._flat, values = snapshot
        self._last = None
        self._variables, self._keys, self._together, self._orphans = known
        for v, x in values:
            v._value = x


def _are_pairs(pairs: list[Any]) -> bool:
    """Returns whether all are tuples of length two. It avoids a Python loop, which would slow an eager step."""
    return set(map(type, pairs)) == {tuple} and set(map(len, pairs)) == {2}


def as_pairs(grads_and_vars: Iterable[Any]) -> list[tuple[Any, Variable]]:
    """Returns (gradient, variable) pairs, with other libraries' variables wrapped. Raises TypeError for non-pairs."""
    pairs = list(grads_and_vars)
    if not _are_pairs(pairs):
        for pair in pairs:
            if not (isinstance(pair, tuple | list) and len(pair) == 2):
                raise TypeError(f"grads_and_vars must hold (gradient, variable) pairs, got {pair!r}")
    if {type(v) for _, v in pairs} == {Variable}:
        return [(g, v) for g, v in pairs]
    for _, v in pairs:
        if not is_variable(v):
            raise TypeError(f"the second of each pair must be a Variable, got {v!r}")
    return [(g, as_variable(v)) for g, v in pairs]


def _rounds(pairs: list[tuple]) -> list[list[tuple]]:
    """Splits pairs into rounds that list each variable at most once. The first round has all variables."""
    rounds: list[list[tuple]] = []
    times: dict[int, int] = {}
    for g, v in pairs:
        n = times[id(v)] = times.get(id(v), 0) + 1
        if n > len(rounds):
            rounds.append([])
        rounds[n - 1].append((g if type(g) in (_ARRAY, IndexedSlices) else jnp.asarray(g), v))
    return rounds


def _clipped_together(pairs: list[tuple], bound: float) -> list[tuple]:
    """Clips by the joint norm if a variable is listed twice, as each round would only see a part of it."""
    values = [g.values if isinstance(g, IndexedSlices) else g for g, _ in pairs]
    clipped, _ = clip_by_global_norm(bound).update(values, EmptyState())
    return [
        (old.with_values(g) if isinstance(old, IndexedSlices) else g, v)
        for g, (old, v) in zip(clipped, pairs, strict=True)
    ]
