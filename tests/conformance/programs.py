"""The transformation of a case with its step compiled, if it has a `cond`, `scan` or `while`.

Outside of `jit`, JAX compiles these anew each time that it meets them, and all other operations once for all cases.
"""

import functools
from typing import Any

import jax

import functional_opt as fo
from functional_opt.core.transformation import Transformation

from ..helpers import at, make_grads, make_params
from .case import Case

CONTROL_FLOW = {"cond", "scan", "while"}


@functools.cache
def has_control_flow(case: Case) -> bool:
    tx, params = case.tx(), make_params()
    step = jax.make_jaxpr(tx.update)(at(make_grads(1), 0), tx.init(params), params)
    return any(equation.primitive.name in CONTROL_FLOW for equation in step.eqns)


@functools.partial(jax.jit, static_argnums=0, static_argnames="value_fn")
def update(tx: Any, updates: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
    return tx.update(updates, state, params, **extra)


@fo.transformation
class compiled(fo.GradientTransformation):
    """Runs a step of the inner transformation as one program, which all that are equal share."""

    inner: Transformation

    def init(self, params):
        return self.inner.init(params)

    def update(self, updates, state, params=None, **extra):
        return update(self.inner, updates, state, params, **extra)


def quick(case: Case, **changes: Any) -> Any:
    """`case.tx(**changes)`, in the form whose few steps take least time."""
    tx = case.tx(**changes)
    return compiled(tx) if has_control_flow(case) else tx
