"""primitives that carry what they mean as a jaxpr, of which a kernel may do the work on a single CPU."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir


def primitive(name: str) -> Primitive:
    """One whose parameter `jaxpr`, which closes over nothing, is what it does: also mapped and differentiated."""
    p = Primitive(name)
    p.multiple_results = True
    p.def_impl(lambda *args, jaxpr, **_: function(jaxpr)(*args))
    p.def_abstract_eval(lambda *_, jaxpr, **__: [v.aval for v in jaxpr.outvars])
    ad.primitive_jvps[p] = _differentiate
    batching.primitive_batchers[p] = _map
    mlir.register_lowering(p, _lower)
    return p


def lower_on_cpu(p: Primitive, kernel: Callable[..., Callable | None]) -> None:
    """On one CPU, the primitive with parameters `kernel(**parameters)` is that function, if it gives one."""

    def lower(ctx, *args, jaxpr, **parameters):
        module = ctx.module_context
        one_device = getattr(module.axis_context, "num_devices", None) == 1  # a kernel would have all gathered
        run = kernel(jaxpr=jaxpr, **parameters)
        if run is None or not one_device or module.lowering_parameters.for_export:
            return _lower(ctx, *args, jaxpr=jaxpr)
        return mlir.lower_fun(run, multiple_results=True)(ctx, *args)

    mlir.register_lowering(p, lower, platform="cpu")


def function(jaxpr: Jaxpr) -> Callable:
    """The jaxpr as a function from arrays to a list of them."""
    return jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))


def with_arguments(closed: ClosedJaxpr) -> Jaxpr:
    """The jaxpr, what it closes over made its first arguments."""
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
