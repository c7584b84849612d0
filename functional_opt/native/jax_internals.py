"""Everything that the kernels use of JAX beyond its documented interfaces.

A primitive here carries its meaning as a jaxpr, which a kernel may compute on a single CPU. JAX's internal interfaces
change from release to release. Importing this file never raises, and neither do the rules it registers: if anything
is missing or unexpected, the kernels are turned off with one warning, and the jaxpr is computed instead.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..core.kernels import known_sum
from ..core.sharding import varying_axes
from .switch import reason, turn_off

try:
    from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
    from jax.interpreters import ad, batching, mlir
    from jax.interpreters import partial_eval as pe
except Exception as e:
    nothing: Any = None
    ClosedJaxpr = Primitive = jaxpr_as_fun = ad = batching = mlir = pe = nothing
    turn_off(f"JAX {jax.__version__} lacks an interface they need: {e}")


def primitive(name: str, kernel: Callable, without_unused: Callable | None = None) -> Any:
    """Makes a primitive whose parameter `jaxpr`, without constants, is its meaning; returns None if JAX refuses.

    kernel: maps the parameters to the function that does the work on one CPU, or to None.
    without_unused: the rule for dead code. Its arguments are which results are used, and the equation. It returns
        which arguments are then read, and the equation without unused results, or None if no equation is left.
    """
    if reason() is not None:
        return None
    try:
        p = Primitive(name)
        p.multiple_results = True
        p.def_impl(lambda *args, jaxpr, **_: function(jaxpr)(*args))
        p.def_abstract_eval(lambda *_, jaxpr, **__: [v.aval for v in jaxpr.outvars])
        ad.primitive_jvps[p] = _differentiate
        batching.primitive_batchers[p] = _map
        mlir.register_lowering(p, _lower)
        mlir.register_lowering(p, _lower_on_cpu(kernel), platform="cpu")
        if without_unused is not None:
            pe.dce_rules[p] = _dce_rule(without_unused)
    except Exception as e:
        turn_off(f"JAX {jax.__version__} has another interface for primitives: {e!r}")
        return None
    return p


def bind(p: Any, closed: Any, *args: Any, **parameters: Any) -> list | None:
    """Binds the primitive to `args`, with the closed jaxpr `closed` as its meaning; returns None if JAX refuses."""
    try:
        return p.bind(*closed.consts, *args, jaxpr=_with_arguments(closed), **parameters)
    except Exception as e:
        turn_off(f"JAX {jax.__version__} has another interface for jaxprs: {e!r}")
        return None


def knows_its_sum(x: jax.Array) -> None:
    """Makes `x + param` and `param + x`, in whatever library, return the new params if a step has computed them.

    Applies to what `jax.jit` traces, and changes nothing if this JAX has other tracers.
    """
    tracer = getattr(pe, "DynamicJaxprTracer", None)
    if type(x) is tracer:
        try:
            x.__class__ = _with_sums(tracer)
        except TypeError:
            pass


@functools.cache
def _with_sums(tracer: Any) -> type:
    """Returns the class of a tracer whose sum with its param is known.

    Python asks the right operand first if its class is derived from that of the left one.
    """

    class Update(tracer):
        __slots__ = ()

        def __add__(self, other):
            known = known_sum(other, self)
            return super().__add__(other) if known is None else known

        def __radd__(self, other):
            known = known_sum(other, self)
            return super().__radd__(other) if known is None else known

    return Update


def function(jaxpr: Any) -> Callable:
    """Returns the jaxpr as a function from arrays to a list of them."""
    return jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))


def reduced(jaxpr: Any, used: Sequence[bool], keep_arguments: bool) -> tuple[Any, list[bool]]:
    """Returns the jaxpr without its unused results, and which of its arguments it reads."""
    return pe.dce_jaxpr(jaxpr, list(used), instantiate=keep_arguments)


def is_alone(x: jax.Array) -> bool:
    """Returns whether an array is on one device: neither varying over an axis of a mesh nor sharded over one."""
    try:
        aval = jax.typeof(x)
        return not varying_axes(x) and aval.sharding.mesh.empty
    except AttributeError as e:
        turn_off(f"JAX {jax.__version__} has another interface for shardings: {e}")
        return False


def _with_arguments(closed: Any) -> Any:
    """Returns the jaxpr with the values that it closes over as its first arguments."""
    jaxpr = closed.jaxpr
    names = jaxpr.debug_info._replace(arg_names=None)
    return jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars], debug_info=names)


def _map(args, dims, *, jaxpr, **_):
    out = jax.vmap(function(jaxpr), dims)(*args)
    return out, [0] * len(out)


def _differentiate(primals, tangents, *, jaxpr, **_):
    out, dots = jax.jvp(function(jaxpr), tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))
    zeros = [ad.Zero(jax.typeof(x).to_tangent_aval()) for x in out]
    return out, [z if d is None else d for z, d in zip(zeros, dots, strict=True)]


def _lower(ctx: Any, *args, jaxpr, **_):
    return mlir.lower_fun(function(jaxpr), multiple_results=True)(ctx, *args)


def _lower_on_cpu(kernel: Callable) -> Callable:
    def lower(ctx, *args, **parameters):
        try:
            module = ctx.module_context
            # on several devices, XLA would gather the arrays for a kernel
            one_device = getattr(module.axis_context, "num_devices", None) == 1
            if one_device and not module.lowering_parameters.for_export and reason() is None:
                run = kernel(**parameters)
                if run is not None:
                    return mlir.lower_fun(run, multiple_results=True)(ctx, *args)
        except Exception as e:
            turn_off(f"JAX {jax.__version__} lowers primitives in another way: {e!r}")
        return _lower(ctx, *args, **parameters)

    return lower


def _dce_rule(without_unused: Callable) -> Callable:
    """Returns the rule that JAX calls with `(used, eqn)`, or from 0.12 on with `(used, live arguments, eqn)`."""

    def rule(*args, **named):
        eqn = next((x for x in (*args, *named.values()) if hasattr(x, "primitive") and hasattr(x, "invars")), None)
        if eqn is None:
            raise TypeError("a rule for dead code is called without an equation")
        try:
            if named or len(args) not in (2, 3) or args[-1] is not eqn or len(args[0]) != len(eqn.outvars):
                raise TypeError(f"called with {len(args) + len(named)} arguments")
            return without_unused(list(args[0]), eqn)
        except Exception as e:
            turn_off(f"JAX {jax.__version__} has another interface for rules of dead code: {e!r}")
            return [True] * len(eqn.invars), eqn

    return rule
