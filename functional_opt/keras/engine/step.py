"""The compiled step that all optimizers share: a pure function, whose arguments include all that may change.

Transformations are arguments and their hyperparameters are leaves, so changing these does not recompile it. The order
is Keras's: unscale, accumulate, clip, decay the weights, update, average, constrain.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ...core.apply import apply_updates
from ...core.schedule import Schedule
from ...core.transformation import GradientTransformation, increment
from ...core.value import value
from ...transforms.combining.chain import chain
from ...transforms.wrapping.guard import update_if
from ..variables.indexed_slices import IndexedSlices
from .accumulation import accumulate, update_with_mean
from .by_variable import ByVariable, State, is_by_variable, keep_variables, shift_counts
from .rows import RowMode, by_rows, on_values

Constraints = tuple[tuple[str, Callable[[jax.Array], jax.Array]], ...]


class StepInputs(NamedTuple):
    """Inputs that may change from step to step without recompiling. None means that a part is not used."""

    clips: GradientTransformation
    rule: GradientTransformation
    learning_rate: Any = None
    weight_decay: Any = None  # a number, or a dict of them by variable
    loss_scale: Any = None
    ema_momentum: Any = None


class Step(Protocol):
    """A step as a pure function. It is hashable, as it is the static argument that a program is compiled for."""

    def __call__(
        self, numbers: Any, values: Any, state: Any, clock: Any, idle: Any, grads: Any
    ) -> tuple[Any, Any, Any]:
        """Returns new values, state and clock. The clock is `iterations`, or several of them.

        Variables without a gradient (None) keep their slots unchanged. Some or all of these variables are in
        `idle` rather than in `values`. Gradients may be IndexedSlices.
        """
        ...


@dataclass(frozen=True)
class OptimizerStep(Step):
    """The step of one optimizer."""

    constraints: Constraints = ()
    decayed: tuple[str, ...] = ()  # the variables that `weight_decay` shrinks
    rows: RowMode = "all"
    accumulate: int | None = None  # the number of gradients that make one update
    ema_overwrite: int | None = None  # steps after which the running means replace the values
    overwritten: tuple[str, ...] = ()  # the variables whose values are replaced by their gradients
    keras3: bool = False

    def __call__(self, numbers, values, state, clock, idle, grads):
        values, state = _step(self, numbers, values, state, idle, grads, clock)
        return values, state, increment(clock)


@value
class ScheduledValue(Schedule):
    """A hyperparameter that depends on the step, which replaces it by its value.

    It is computed in float32, as in Keras, even for float64 variables.
    """

    schedule: Schedule

    def __call__(self, count):
        with jax.enable_x64(False):
            return jnp.asarray(self.schedule(count), jnp.float32)


@value
class decayed(Schedule):
    """A learning rate divided by 1 + decay · count: Keras's `decay`, which composes with any schedule."""

    learning_rate: Any
    decay: Any

    def __call__(self, count):
        return self.learning_rate / (1 + self.decay * count)


def resolve_schedules(step: Any, numbers: Any, in_float64: bool = False) -> Any:
    """Replaces schedules by their values at a step.

    Hyperparameters are float32, as in Keras. With `in_float64`, which is for float64 variables, the coefficients
    that are computed from them are float64.
    """
    numbers = _replaced(ScheduledValue, step, numbers)
    if in_float64:
        wide = lambda h: jnp.asarray(h, jnp.float64) if jnp.result_type(h) == jnp.float32 else h  # noqa: E731
        numbers = jax.tree.map(wide, numbers)
    return _replaced(decayed, step, numbers)


def _replaced(kind: type[Schedule], step: Any, numbers: Any) -> Any:
    return jax.tree.map(
        lambda x: x(step) if isinstance(x, kind) else x, numbers, is_leaf=lambda x: isinstance(x, kind)
    )


def _step(
    plan: OptimizerStep,
    numbers: StepInputs,
    values: ByVariable,
    state: State,
    idle: ByVariable,
    grads: ByVariable,
    iterations: jax.Array,
) -> tuple[ByVariable, State]:
    if plan.overwritten:
        values = ByVariable(values | {key: grads[key].astype(values[key].dtype) for key in plan.overwritten})
        grads = ByVariable(grads | dict.fromkeys(plan.overwritten))
    updates_done = iterations // plan.accumulate if plan.accumulate else iterations
    in_float64 = any(x.dtype == jnp.float64 for x in jax.tree.leaves(values))
    # Keras 3 advances schedules with every gradient, even if several make one update
    numbers = resolve_schedules(iterations if plan.keras3 else updates_done, numbers, in_float64)
    inner = shift_counts(state.inner, updates_done - state.counted)
    if numbers.loss_scale is not None:
        grads = on_values(lambda tree: jax.tree.map(lambda g: g / numbers.loss_scale, tree), grads)
    update_now = (iterations + 1) % plan.accumulate == 0 if plan.accumulate else True
    new, inner, accumulated = _update(plan, numbers, state, inner, values, idle, grads, update_now)
    average = state.average
    if plan.keras3:  # Keras 3 takes means before the constraints, at every gradient
        new, average = _average(plan, numbers, average, new, updates_done, True)
        new = _constrain(plan, new, grads, True)
    else:
        new = _constrain(plan, new, grads, update_now)
        new, average = _average(plan, numbers, average, new, updates_done, update_now)
    counted = (iterations + 1) // plan.accumulate if plan.accumulate else increment(iterations)
    return new, State(inner, counted.astype(state.counted.dtype), average, accumulated, state.slots)


def _update(
    plan: OptimizerStep,
    numbers: StepInputs,
    state: State,
    inner: Any,
    values: ByVariable,
    idle: ByVariable,
    grads: ByVariable,
    now: Any,
) -> tuple[ByVariable, Any, ByVariable]:
    """Returns new values, inner state and sums of gradients.

    Values and inner state stay as they are unless `now`, which is True or a bool array.
    """
    tx, clips, sums, mode = numbers.rule, numbers.clips.init(values), state.accumulated, plan.rows
    chained = chain(numbers.clips, tx)  # which one kernel can do
    if plan.accumulate and mode != "as they are":
        update, mode = partial(update_with_mean, plan.accumulate, now, chained), "as they are"
        pack, unpack = lambda x: (sums, (clips, x)), lambda x: (x[1][1], x[0])
    elif mode == "as they are" or any(isinstance(g, IndexedSlices) for g in grads.values()):
        if plan.accumulate:
            grads, sums = accumulate(plan.accumulate, now, sums, grads)
        grads = on_values(lambda tree: numbers.clips.update(tree, clips)[0], grads)
        update = tx.update if now is True else partial(update_if, now, tx, extra={})
        pack, unpack = lambda x: x, lambda x: (x, sums)
    else:
        update = chained.update
        pack, unpack = lambda x: (clips, x), lambda x: (x[1], sums)
    if numbers.weight_decay is not None:
        values = ByVariable(values)
        for key in plan.decayed:
            if grads[key] is not None:
                rate = numbers.weight_decay[key] if isinstance(numbers.weight_decay, dict) else numbers.weight_decay
                less = values[key] - (values[key] * rate * numbers.learning_rate).astype(values[key].dtype)
                values[key] = less if now is True else jnp.where(now, less, values[key])
    still = {key: idle[key] if values[key] is None else values[key] for key, g in grads.items() if g is None}
    zeros = {key: jnp.zeros(x.shape) for key, x in still.items()}  # not every transformation accepts None

    def rule(inner, values, grads):
        updates, new = update(ByVariable(grads | zeros), inner, ByVariable(values | zeros))
        updates = ByVariable((key, None if key in still else u) for key, u in updates.items())
        return apply_updates(values, updates), keep_variables(still, inner, new)

    new, packed = by_rows(rule, mode, pack(inner), values, grads)
    inner, sums = unpack(packed)
    return new, inner, sums


def _average(
    plan: OptimizerStep,
    numbers: StepInputs,
    average: ByVariable,
    values: ByVariable,
    updates_done: jax.Array,
    now: Any,
) -> tuple[ByVariable, ByVariable]:
    """Returns new values and running means of the values: a ← m·a + (1 − m)·v, starting with the first v.

    The new values are the old ones, or the means that overwrite them.
    """
    if numbers.ema_momentum is None:
        return values, average
    m = jnp.where(updates_done == 0, 0.0, numbers.ema_momentum)
    average, values = ByVariable(average), ByVariable(values)
    for key, v in values.items():
        if v is not None:
            mean = (m * average[key] + (1 - m) * v).astype(v.dtype)
            average[key] = jnp.where(now, mean, average[key])
            if plan.ema_overwrite:
                values[key] = jnp.where(now & ((updates_done + 1) % plan.ema_overwrite == 0), average[key], v)
    return values, average


def _constrain(plan: OptimizerStep, values: ByVariable, grads: ByVariable, now: Any) -> ByVariable:
    values = ByVariable(values)
    for key, constraint in plan.constraints:
        if grads[key] is not None:
            v = values[key]
            values[key] = jnp.where(now, jnp.asarray(constraint(v), v.dtype), v)
    return values


@dataclass(frozen=True)
class Rounds(Step):
    """Several steps in sequence that count as one, for variables that are listed more than once.

    `grads` is a tuple with the gradients of each round; variables without a gradient in a round are idle in it. State
    that is not kept per variable is restored before each round.
    """

    steps: tuple[Step, ...]

    def __call__(self, numbers, values, state, clock, idle, grads):
        first, after = state, clock
        for step, gs in zip(self.steps, grads, strict=True):
            here = _map(lambda g, v: {k: None if g[k] is None else x for k, x in v.items()}, gs, values)
            rest = _map(
                lambda g, v, i: i | {k: x for k, x in v.items() if x is not None and g[k] is None}, gs, values, idle
            )
            state = _map(lambda old, new: new if is_by_variable(new) else old, first, state)
            new, state, done = step(numbers, here, state, clock, rest, gs)
            values = _map(lambda v, n: v | {k: x for k, x in n.items() if x is not None}, values, new)
            after = jax.tree.map(jnp.maximum, after, done)
        return values, state, after


def _map(fn: Callable, *trees: Any) -> Any:
    """Maps a function of `ByVariable`s, which may return plain dicts."""

    def leaf(*xs):
        out = fn(*xs)
        return ByVariable(out) if isinstance(out, dict) else out

    return jax.tree.map(leaf, *trees, is_leaf=is_by_variable)
