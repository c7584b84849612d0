"""Plan: a chain and its leaves as calls of the kernel."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..leaves import is_nothing
from .library import STEP, SUMS_OF_SQUARES
from .link import OPS, Link, is_float32

ENOUGH = 1 << 14
"""Elements in all that make a kernel worth the while: XLA fuses small leaves with what is around them."""
EACH = 1 << 8
"""And on average: every array takes the time of some hundred elements to be passed to a kernel."""
TOGETHER = 64
"""Leaves in one call: XLA's time to compile one grows with the square of its arrays."""


class Call(NamedTuple):
    """Leaves that the same program is run for."""

    program: tuple[int, ...]  # (operation, where its scalars start) pairs, one after another
    leaves: tuple[int, ...]


class Plan(NamedTuple):
    """What the kernel does to the leaves that have a gradient; they are numbered from 0."""

    leaves: int
    calls: tuple[Call, ...]
    slots: tuple[tuple[int, ...], ...]  # for each slot of a leaf, where the leaves' are among the leaves of the state
    squares: Callable[[Any, Any], Any] | None  # see Link; the scalar is the first

    def run(self, scalars: jax.Array, grads: Sequence, params: Sequence, state: Sequence) -> tuple[list, dict]:
        """New params, and new slots by their place in the state."""
        if self.squares is not None:
            scalars = scalars.at[0].set(self.squares(sums_of_squares(grads), scalars[0]))
        new_params, new_slots = list(params), {}
        for call in self.calls:
            trees = (params, *([state[i] for i in places] for places in self.slots))
            kept = [tree[i] for tree in trees for i in call.leaves]
            n = len(call.leaves)
            out = jax.ffi.ffi_call(
                STEP,
                [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in kept],
                input_output_aliases={1 + n + i: i for i in range(len(kept))},
            )(scalars, *(grads[i] for i in call.leaves), *kept, program=np.array(call.program, np.int32))
            for i, x in zip(call.leaves, out, strict=False):
                new_params[i] = x
            for k, places in enumerate(self.slots):
                new_slots |= zip((places[i] for i in call.leaves), out[n * (k + 1) : n * (k + 2)], strict=True)
        return new_params, new_slots


def sums_of_squares(arrays: Sequence[jax.Array]) -> jax.Array:
    """Σ|x|² of each array, shape (number of arrays,)."""
    sums = []
    for i in range(0, len(arrays), TOGETHER):
        some = arrays[i : i + TOGETHER]
        sums.append(jax.ffi.ffi_call(SUMS_OF_SQUARES, jax.ShapeDtypeStruct((len(some),), jnp.float32))(*some))
    return jnp.concatenate(sums)


def plan_of(links: tuple[Link, ...], updates: Any, state: Sequence, params: Any) -> tuple[Plan, jax.Array] | None:
    """The plan for a chain and the scalars that it takes, or None where the kernel cannot do it or would not win.

    `state` is the list of the state's leaves.
    """
    scalars = [s for link in links for s in link.scalars]
    if not scalars or any(link.squares for link in links[1:]) or not all(map(is_float32, scalars)):
        return None
    leaves, treedef = jax.tree.flatten(updates, is_leaf=is_nothing)
    try:
        trees = [treedef.flatten_up_to(t) for t in (params, *(s for link in links for s in link.slots))]
        only = [[True] * len(leaves) if k.only is None else treedef.flatten_up_to(k.only) for k in links]
    except (ValueError, TypeError):
        return None  # they do not fit; `update` says how
    here = [i for i, g in enumerate(leaves) if not is_nothing(g)]
    places = {id(x): i for i, x in enumerate(state)}
    if not here or len(places) != len(state):
        return None
    if not all(_fits(leaves[i], *(tree[i] for tree in trees)) for i in here):
        return None
    if sum(leaves[i].size for i in here) < max(ENOUGH, EACH * len(here)):
        return None
    slots = tuple(tuple(places.get(id(tree[i]), -1) for i in here) for tree in trees[1:])
    programs: dict[tuple[int, ...], list[int]] = {}
    for n, i in enumerate(here):
        programs.setdefault(_program(links, [chosen[i] for chosen in only]), []).append(n)
    calls = (
        Call(program, tuple(some[i : i + TOGETHER]))
        for program, some in programs.items()
        for i in range(0, len(some), TOGETHER)
    )
    plan = Plan(len(here), tuple(calls), slots, links[0].squares)
    return plan, jnp.stack([jnp.asarray(s, jnp.float32) for s in (*scalars, 1.0)])


def _fits(grad: Any, param: Any, *slots: Any) -> bool:
    dtypes = [getattr(x, "dtype", None) for x in (grad, param, *slots)]
    return (
        all(d in (jnp.float32, jnp.bfloat16) for d in dtypes[:2])
        and all(d == jnp.float32 for d in dtypes[2:])
        and all(x.shape == grad.shape for x in (param, *slots))
    )


def _program(links: tuple[Link, ...], chosen: Sequence[bool]) -> tuple[int, ...]:
    """Those links that are chosen, ending with `add`: a last scale goes into it."""
    code, start = [], 0
    for link, use in zip(links, chosen, strict=True):
        if use:
            code.append((OPS.index(link.op), start))
        start += len(link.scalars)
    last = start  # where the 1 after all scalars is
    if code and code[-1][0] == OPS.index("scale"):
        last = code.pop()[1]
    return tuple(x for pair in (*code, (OPS.index("add"), last)) for x in pair)
