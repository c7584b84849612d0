"""snapshot, monitor, measure_with_ema: measurements of the updates, kept in the state."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from ...core.checks import Static
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
from ...core.value import show
from ..scaling.moments import EmaState


class SnapshotState(NamedTuple):
    """`measurement`: a dict from the measure's name to its result at the last step; zeros before the first."""

    measurement: Number


@transformation
class snapshot(GradientTransformation):
    """Keeps a measurement of the updates in the state; the updates do not change.

    In a chain it measures the updates at its position. `state.get(state, measure_name)` reads the result.

    Args:
        measure_name: the name of the measurement.
        measure: a function from the updates to a tree of arrays.

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
    """Keeps a running mean of a function of the updates, as `ema` does; for use in `monitor`.

    Args:
        measure: a function from the updates to a tree of arrays; bools count as 0 and 1.
        decay: in [0, 1).
        debias: whether to divide by 1 − decayᵗ, the total weight after t steps.
        accumulator_dtype: the dtype of the stored mean; if None, float32, or wider if the measurement is.

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
    """`measurements`: the last results by name; zeros before the first step. `measure_states`: their states."""

    measurements: Number
    measure_states: States


@transformation
class monitor(GradientTransformation):
    """Keeps several measurements of the updates in the state; the updates do not change.

    Args:
        measures: a dict from name to measure: a function from the updates to a tree of arrays, or a transformation
            whose result is the measurement, such as `measure_with_ema(...)`.

    >>> from functional_opt import global_norm, named_chain, scale
    >>> tx = named_chain(("see", monitor({"norm": global_norm})), ("step", scale(-1.0)))
    >>> _, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
    >>> float(state["see"].measurements["norm"])
    5.0

    Differs from Optax: the measurements are in the state from the start, so it works in `jax.lax.scan`.
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
    """Makes a function of the updates a transformation."""

    fn: Static[Callable]

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        return self.fn(updates), state

    def __repr__(self):
        return show(self.fn)


def _blank(measure: Callable, params: Tree) -> Tree:
    """Returns zeros with the shapes and dtypes of a measure's result."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(measure, params))


def _as_before(new: Any, old: Tree) -> Tree:
    """Casts a result to the dtypes of the old one, and keeps the old leaf where there was no gradient to measure."""
    return jax.tree.map(lambda x, y: y if x is None else cast_like(x, y), new, old, is_leaf=is_nothing)
