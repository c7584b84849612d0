"""snapshot, monitor, measure_with_ema: numbers of the updates, kept in the state."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from ...core.leaves import Tree, cast_like, is_nothing, widen
from ...core.ranges import Decay, DType
from ...core.slots import Number, States
from ...core.transformation import (
    EmptyState,
    GradientTransformation,
    as_transformation,
    increment,
    transformation,
    zero_count,
)
from ...core.value import Static, show
from ..scaling.moments import EmaState


class SnapshotState(NamedTuple):
    """`measurement`: by the name of the measure, what it gave at the last step; zeros before the first."""

    measurement: Number


@transformation
class snapshot(GradientTransformation):
    """Leaves the updates as they are and keeps a measurement of them in the state.

    In a chain it sees the updates as they are where it stands; `state.get(state, measure_name)` reads it.

    Args:
        measure_name: the name.
        measure: a function of the updates to a tree of arrays.

    >>> from functional_opt import global_norm
    >>> tx = snapshot("norm", global_norm)
    >>> _, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
    >>> float(state.measurement["norm"])
    5.0
    """

    measure_name: Static[str]
    measure: Static[Callable]

    def init(self, params):
        return SnapshotState({self.measure_name: _blank(self.measure, params)})

    def update(self, updates, state, params=None, **extra):
        (old,) = state.measurement.values()
        return updates, SnapshotState({self.measure_name: _as_before(self.measure(updates), old)})


@transformation
class measure_with_ema(GradientTransformation):
    """For `monitor`: a running mean of what a function of the updates gives, as `ema` keeps it.

    Args:
        measure: a function of the updates to a tree of arrays; bools count as 0 and 1.
        decay: in [0, 1).
        debias: whether to divide by the weight that t steps have given.
        accumulator_dtype: how the mean is stored; float32, or wider if the measurement is, if None.

    >>> from functional_opt import global_norm
    >>> tx = measure_with_ema(global_norm, 0.9)
    >>> mean, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
    >>> round(float(mean), 3), round(float(state.ema), 3)
    (5.0, 0.5)
    """

    measure: Static[Callable]
    decay: Decay
    debias: Static[bool] = True
    accumulator_dtype: Static[DType | None] = None

    def init(self, params):
        def leaf(x):
            dtype = self.accumulator_dtype or jnp.promote_types(x.dtype, jnp.float32)
            return jnp.zeros(x.shape, dtype)

        return EmaState(zero_count(), jax.tree.map(leaf, jax.eval_shape(self.measure, params)))

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        mean = jax.tree.map(
            lambda x, m: widen(m) if x is None else self.decay * widen(m) + (1 - self.decay) * widen(x),
            self.measure(updates),
            state.ema,
            is_leaf=is_nothing,
        )
        shown = jax.tree.map(lambda m: m / (1 - self.decay**t) if self.debias else m, mean)
        return shown, EmaState(t, _as_before(mean, state.ema))


class MonitorState(NamedTuple):
    """`measurements`: by name, what was measured last; zeros before the first step. `measure_states`: theirs."""

    measurements: Number
    measure_states: States


@transformation
class monitor(GradientTransformation):
    """Leaves the updates as they are and keeps several measurements of them in the state.

    Args:
        measures: by name a function of the updates to a tree of arrays, or a transformation whose result is
            the measurement, such as `measure_with_ema(...)`.

    >>> from functional_opt import global_norm, named_chain, scale
    >>> tx = named_chain(("see", monitor({"norm": global_norm})), ("step", scale(-1.0)))
    >>> _, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
    >>> float(state["see"].measurements["norm"])
    5.0

    Differs from Optax: the measurements have their places in the state from the start, so it scans.
    """

    measures: dict[str, GradientTransformation]

    def __post_init__(self):
        if not isinstance(self.measures, dict):
            raise TypeError(f"measures must be a dict from names to functions of the updates, got {self.measures!r}")
        measures: dict[str, Any] = {}
        x: Any
        for name, x in sorted(self.measures.items()):
            if not hasattr(x, "update") and callable(x) and not isinstance(x, type):
                x = _measure(cast(Callable, x))
            measures[name] = as_transformation(x, f"measures[{name!r}]")
        object.__setattr__(self, "measures", measures)

    def init(self, params):
        states = tuple(m.init(params) for m in self.measures.values())
        blank = {
            name: _blank(lambda p, m=m, s=s: m.update(p, s, p)[0], params)
            for (name, m), s in zip(self.measures.items(), states, strict=True)
        }
        return MonitorState(blank, states)

    def update(self, updates, state, params=None, **extra):
        measurements, states = {}, []
        for (name, m), s in zip(self.measures.items(), state.measure_states, strict=True):
            now, s = m.update(updates, s, params, **extra)
            measurements[name] = _as_before(now, state.measurements[name])
            states.append(s)
        return updates, MonitorState(measurements, tuple(states))


@transformation
class _measure(GradientTransformation):
    """A function of the updates, as a transformation."""

    fn: Static[Callable]

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        return self.fn(updates), state

    def __repr__(self):
        return show(self.fn)


def _blank(measure: Callable, params: Tree) -> Tree:
    """Zeros of the shapes and dtypes that a measure gives."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(measure, params))


def _as_before(new: Any, old: Tree) -> Tree:
    """In the dtypes that the state began with; a leaf that was not measured, for want of a gradient, as it was."""
    return jax.tree.map(lambda x, y: y if x is None else cast_like(x, y), new, old, is_leaf=is_nothing)
