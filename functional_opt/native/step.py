"""step: makes a chain's update one primitive of JAX, which either XLA or the kernel computes.

The results of the primitive are the updates, the new params (params + updates) and the new state. It carries the
chain's own computation as a jaxpr, which defines its meaning. The jaxpr is what runs if the primitive is mapped,
differentiated, run eagerly, or compiled for anything but a single CPU.

When `jax.jit` drops unused results, it calls `_without_unused`. If no update is used, because `apply_updates` took
the new params instead, the kernel writes the new params over the old ones. Otherwise, if slots are codes, the kernel
computes the updates, whatever they are used for, and XLA adds them to the params if the sum is used. Slots that are
not codes are left to XLA, which is as fast. No work is done twice.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import core

from ..core.kernels import remember_sum
from ..core.leaves import Tree, add, is_nothing
from .jax_internals import bind, function, knows_its_sum, primitive, reduced
from .library import available
from .plan import Plan, plan_of
from .switch import disabled, why_not


def step(operations: Callable, pure: Callable, updates: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
    """Returns `pure(updates, state, params)`, as `operations()` describe it, in a form for the kernel."""
    found = None if params is None else _planned(operations, updates, state, params)
    if found is None:
        return pure(updates, state, params)
    return carried(*found, pure, updates, state, params)


def carried(
    plan: Plan, scalars: jax.Array, pure: Callable, updates: Tree, state: Any, params: Tree
) -> tuple[Tree, Any]:
    """Returns `pure(updates, state, params)` as the primitive, for which the kernel has this plan."""
    leaves, treedef = jax.tree.flatten(updates, is_leaf=is_nothing)
    weights = treedef.flatten_up_to(params)
    slots, structure = jax.tree.flatten(state)
    here = [i for i, g in enumerate(leaves) if not is_nothing(g)]

    def all_results(scalars, grads, kept, slots):
        some = dict(zip(here, zip(grads, kept, strict=True), strict=True))
        gs = treedef.unflatten([some[i][0] if i in some else g for i, g in enumerate(leaves)])
        ws = treedef.unflatten([some[i][1] if i in some else w for i, w in enumerate(weights)])
        with disabled():  # chains inside this one must not become primitives, too
            us, new_state = pure(gs, structure.unflatten(slots), ws)
        us = [u for i, u in enumerate(treedef.flatten_up_to(us)) if i in some]
        return us, [add(w, u) for w, u in zip(kept, us, strict=True)], structure.flatten_up_to(new_state)

    arguments = scalars, [leaves[i] for i in here], [weights[i] for i in here], slots
    closed = jax.make_jaxpr(all_results)(*arguments)
    out = bind(step_p, closed, *jax.tree.leaves(arguments), plan=plan, adds=False)
    if out is None:
        return pure(updates, state, params)
    n = len(here)
    for i, u, new_param in zip(here, out[:n], out[n : 2 * n], strict=True):
        leaves[i] = u
        remember_sum(weights[i], u, new_param)
        knows_its_sum(u)
    return treedef.unflatten([None if is_nothing(u) else u for u in leaves]), structure.unflatten(out[2 * n :])


def _planned(operations: Callable, updates: Tree, state: Any, params: Tree) -> tuple[Plan, jax.Array] | None:
    if not any(isinstance(x, core.Tracer) for x in jax.tree.leaves((updates, params))) or why_not():
        return None
    links = operations()
    found = None if links is None else plan_of(links, updates, jax.tree.leaves(state), params)
    return found if found is not None and available() else None


# The primitive. Its arguments end with the scalars, gradients, params and the leaves of the state. Its results are
# updates (none if it adds them), new params and the leaves of the new state. Without a plan, XLA does the work.


def _without_unused(used, eqn):
    """Drops unused results, and decides whether XLA or the kernel does the work."""
    if not any(used):
        return [False] * len(eqn.invars), None
    jaxpr, plan, adds = (eqn.params[name] for name in ("jaxpr", "plan", "adds"))
    n, gives = (0, False) if plan is None else (plan.leaves, plan.gives_updates)
    updates, new_params, slots = used[:n], used[n : 2 * n], used[2 * n :]
    if adds or (gives and any(updates) and all(map(max, updates, new_params)) and any(slots)):
        return [True] * len(eqn.invars), eqn
    adds = n > 0 and not any(updates) and all(new_params)
    if adds:
        used = [i >= n for i in range(len(used))]
    smaller, reads = reduced(jaxpr, used, keep_arguments=adds)
    return reads, eqn.replace(
        params=dict(jaxpr=smaller, plan=plan if adds else None, adds=adds),
        invars=[v for v, read in zip(eqn.invars, reads, strict=True) if read],
        outvars=[v for v, use in zip(eqn.outvars, used, strict=True) if use],
    )


def _kernel(jaxpr, plan, adds):
    def run(*args):
        n = plan.leaves
        before = n if adds else 2 * n  # the number of results before the leaves of the state
        slots = args[len(args) - (len(jaxpr.outvars) - before) :]
        scalars, *pairs = args[len(args) - len(slots) - 2 * n - 1 : len(args) - len(slots)]
        grads, params = pairs[:n], pairs[n:]
        results, new_slots = plan.run(adds, scalars, grads, params, slots)
        if not adds:
            results += map(add, params, results)
        # XLA computes the remaining results: counts, and slots without a gradient
        others = [False] * before + [i not in new_slots for i in range(len(slots))]
        rest = iter(function(reduced(jaxpr, others, keep_arguments=True)[0])(*args))
        return [*results, *(new_slots[i] if i in new_slots else next(rest) for i in range(len(slots)))]

    return run if plan is not None and (adds or plan.gives_updates) else None


step_p = primitive("functional_opt_step", _kernel, _without_unused)
