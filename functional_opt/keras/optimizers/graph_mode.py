"""Arguments and results that optimizers inherited from TensorFlow's graph mode, and their meaning here."""

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import jax
from jax import core

from ..variables.indexed_slices import IndexedSlices
from ..variables.variable import Variable

GATE_NONE, GATE_OP, GATE_GRAPH = 0, 1, 2


class AggregationMethod:
    """TensorFlow's methods to add up the parts of a gradient. Here all of them add the parts as they come."""

    ADD_N = DEFAULT = 0
    EXPERIMENTAL_TREE = 1
    EXPERIMENTAL_ACCUMULATE_N = 2


class Operation(Variable):
    """The result of `minimize` and `apply_gradients`: a view of `iterations`, in place of TensorFlow's operation.

    It shows the value of `iterations` when it is read. It cannot be run: the update has already been applied.
    """

    def __init__(self, iterations: Variable):
        self._iterations, self._name = iterations, iterations.path
        self.trainable, self.constraint = False, None

    @property
    def _value(self) -> jax.Array:
        return self._iterations._value

    @_value.setter
    def _value(self, x: jax.Array) -> None:
        self._iterations._value = x

    def run(self, feed_dict: Any = None, session: Any = None) -> None:
        """Raises RuntimeError: the update has already been applied."""
        raise RuntimeError(
            "this update was applied when minimize or apply_gradients was called, which happens at once in JAX; "
            "call it again, in the loop, for another step"
        )


def check(gate_gradients: Any, aggregation_method: Any) -> None:
    """Raises ValueError for values unknown to TensorFlow; warns about methods that have no effect here."""
    if gate_gradients not in (GATE_NONE, GATE_OP, GATE_GRAPH):
        raise ValueError(
            "gate_gradients must be one of: Optimizer.GATE_NONE, Optimizer.GATE_OP, Optimizer.GATE_GRAPH. "
            f"Not {gate_gradients!r}"
        )
    if aggregation_method not in (None, 0, 1, 2):
        raise ValueError(f"Invalid aggregation_method specified {aggregation_method!r}.")
    if aggregation_method in (1, 2):
        warnings.warn(
            "aggregation_method has no effect: parts of a gradient are added as they come", stacklevel=users_level()
        )


def gated(grads: Sequence[Any], gate_gradients: int) -> Sequence[Any]:
    """Delays the use of gradients: until all are computed (GATE_GRAPH), or until each is itself (GATE_OP).

    Outside of `jax.jit` this holds anyway.
    """
    if gate_gradients == GATE_NONE or not any(isinstance(x, core.Tracer) for x in jax.tree.leaves(grads)):
        return grads
    if gate_gradients == GATE_GRAPH:
        return jax.lax.optimization_barrier(grads)
    return [None if g is None else jax.lax.optimization_barrier(g) for g in grads]


def colocated(grads: Sequence[Any], variables: Sequence[Variable]) -> Sequence[Any]:
    """Shards each gradient over devices like its variable, if the variable is committed to its devices."""

    def place(g: Any, v: Variable) -> Any:
        if g is None or isinstance(g, IndexedSlices) or isinstance(v._value, core.Tracer) or not v._value.committed:
            return g
        return jax.lax.with_sharding_constraint(g, v._value.sharding)

    return [place(g, v) for g, v in zip(grads, variables, strict=True)]


def users_level() -> int:
    """Returns the stack level, seen from the caller, of the first code outside this library."""
    frame, level = sys._getframe(1), 1
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("functional_opt."):
        frame, level = frame.f_back, level + 1
    return level
