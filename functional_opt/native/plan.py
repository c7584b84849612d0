"""Plan: describes the update of a chain as calls of the kernel."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.kernels import CodedSlots, KernelOp, StoredSlot
from ..core.leaves import is_nothing
from .library import STEP, SUMS_OF_SQUARES

OPS = (  # numbered as in cpp/rules.h
    *("scale", "clip", "decay", "trace", "nesterov", "adam", "nadam", "radam", "belief", "yogi", "laprop", "amsgrad"),
    *("adamax", "ademamix", "adan", "adopt", "lion", "rms", "rms_outside", "rss", "rss_outside", "adadelta"),
    *("schedule_free", "ema", "accumulate", "gate", "add", "update"),
)
KINDS = (  # of slots, numbered as in cpp/arrays.h
    *("float32", "bfloat16", "int8", "uint8", "companded_int8", "companded_uint8", "int4", "uint4"),
)
ENOUGH = 1 << 14
"""The total number of elements from which a kernel pays: XLA fuses small leaves with the code around them."""
TOGETHER = 64
"""The most leaves in one call: XLA's time to compile a call grows with the square of its number of arrays."""
BLOCK = 512
"""The number of elements that the kernel processes at a time, as in cpp/arrays.h; no block of codes may be larger."""

MAX_SLOTS = 6
"""The most slots of a leaf, as in cpp/arrays.h."""


class Call(NamedTuple):
    """One call of the kernel, which runs the same program on several leaves."""

    program: tuple[int, ...]  # (operation, where its scalars start) pairs, one after another, ending with `add`
    kinds: tuple[int, ...]  # how each slot is stored
    leaves: tuple[int, ...]
    kept: tuple[int, ...]  # indices of the leaves' slots, and then of their scales, among the leaves of the state

    def attributes(self, adds: bool) -> dict[str, np.ndarray]:
        *code, end, factor = self.program
        end = end if adds else OPS.index("update")
        return {"program": np.array([*code, end, factor], np.int32), "kinds": np.array(self.kinds, np.int32)}


class Norm(NamedTuple):
    """Scaling by the global norm of the gradients, or of what an "accumulate" makes of them."""

    squares: Callable[[Any, Any], Any]  # see `KernelOp`
    scalar: int  # the index of its scalar
    accumulates: int  # the number of scalars of a first "accumulate", 0 if there is none


class Plan(NamedTuple):
    """The work of the kernel on the leaves that have a gradient, which are numbered from 0."""

    leaves: int
    calls: tuple[Call, ...]
    norm: Norm | None
    gives_updates: bool  # whether the kernel is faster even if the updates are needed

    def run(
        self, adds: bool, scalars: jax.Array, grads: Sequence, params: Sequence, state: Sequence
    ) -> tuple[list, dict]:
        """Returns new params, or without `adds` the updates, and the new slots by their index in the state.

        New params and slots reuse the buffers of the old ones; updates reuse those of gradients of the same dtype.
        """
        if self.norm is not None:
            squares, k, n = self.norm
            first = {i: state[j] for call in self.calls for i, j in zip(call.leaves, call.kept, strict=False)}
            sums = sums_of_squares(scalars[:n], grads, [first[i] for i in range(self.leaves)] if n else [])
            scalars = scalars.at[k].set(squares(sums, scalars[k]))
        results, new_slots = list(params), {}
        for call in self.calls:
            kept = [*(params[i] for i in call.leaves), *(state[i] for i in call.kept)]
            n = len(call.leaves)
            places = {1 + n + i: i for i in range(0 if adds else n, len(kept))}
            if not adds and all(grads[i].dtype == params[i].dtype for i in call.leaves):
                places |= {1 + i: i for i in range(n)}
            out = jax.ffi.ffi_call(
                STEP,
                [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in kept],
                input_output_aliases=places,
            )(scalars, *(grads[i] for i in call.leaves), *kept, **call.attributes(adds))
            for i, x in zip(call.leaves, out[:n], strict=True):
                results[i] = x
            new_slots |= zip(call.kept, out[n:], strict=True)
        return results, new_slots


def sums_of_squares(scalars: jax.Array, grads: Sequence[jax.Array], slots: Sequence[jax.Array]) -> jax.Array:
    """Returns Σ|x|² of each gradient, shape (number of gradients,).

    Given the scalars and slots of "accumulate", sums the squares of the mean or sum that it makes of each gradient.
    """
    sums = []
    for i in range(0, len(grads), TOGETHER):
        some = grads[i : i + TOGETHER]
        call = jax.ffi.ffi_call(SUMS_OF_SQUARES, jax.ShapeDtypeStruct((len(some),), jnp.float32))
        sums.append(call(scalars, *some, *slots[i : i + TOGETHER]))
    return jnp.concatenate(sums)


class _Leaf(NamedTuple):
    grad: Any
    param: Any
    slots: list[StoredSlot]
    program: tuple[int, ...]

    @property
    def kinds(self) -> tuple[int, ...]:
        return tuple(KINDS.index(x.kind) for x in self.slots)

    @property
    def fits(self) -> bool:
        """Returns whether the kernel supports this leaf."""
        arrays = self.grad, self.param
        floats = all(getattr(x, "dtype", None) in (jnp.float32, jnp.bfloat16) for x in arrays)
        if not floats or any(x.shape != self.grad.shape for x in (self.param, *self.slots)):
            return False
        scales = {x.scale.shape for x in self.slots if x.scale is not None}
        return len(self.slots) <= MAX_SLOTS and len(scales) <= 1 and all(map(_is_known, self.slots))


def _is_known(slot: StoredSlot) -> bool:
    if slot.scale is None:
        return slot.kind in KINDS[:2]
    if not slot.scale.shape:
        return False  # of a scalar
    blocks = slot.scale.shape[-1]
    row = math.prod(slot.shape) * blocks // max(slot.scale.size, 1)
    return slot.kind in KINDS[2:] and blocks > 0 and -(-row // blocks) <= BLOCK


def plan_of(
    operations: tuple[KernelOp, ...], updates: Any, state: Sequence, params: Any, enough: int = ENOUGH
) -> tuple[Plan, jax.Array] | None:
    """Plans a chain. Returns the plan and its scalars, or None if the kernel cannot do it or would not be faster.

    `state` is the list of the state's leaves; `enough` is the total number of elements from which a kernel pays.
    """
    scalars = [s for operation in operations for s in operation.scalars]
    if not scalars or not all(map(is_float32, scalars)):
        return None
    try:
        norm = _norm(operations)
    except ValueError:
        return None
    try:
        leaves = _leaves(operations, updates, params)
    except (ValueError, TypeError):
        return None  # the trees do not match; `update` raises an error that says how
    places = {id(x): i for i, x in enumerate(state)}
    if len(places) != len(state) or not all(x.fits for x in leaves) or sum(x.grad.size for x in leaves) < enough:
        return None
    coded = any(x.scale is not None for leaf in leaves for x in leaf.slots)  # else XLA is as fast, with fewer arrays
    plan = Plan(len(leaves), tuple(_calls(leaves, places)), norm, gives_updates=coded)
    return plan, jnp.stack([jnp.asarray(s, jnp.float32) for s in (*scalars, 1.0)])


def _norm(operations: Sequence[KernelOp]) -> Norm | None:
    """Returns what scales by a global norm; raises ValueError if other operations than "accumulate" precede it."""
    start, before = 0, []  # where an operation's scalars start, and the operations before it that change updates
    found = None
    for operation in operations:
        if operation.squares is not None:
            if found is not None or [k.name for k in before] not in ([], ["accumulate"]):
                raise ValueError("a norm of numbers that the kernels do not sum")
            found = Norm(operation.squares, start, sum(len(k.scalars) for k in before))
        start += len(operation.scalars)
        before += [operation] if operation.name != "gate" else []
    return found


def _leaves(operations: tuple[KernelOp, ...], updates: Any, params: Any) -> list[_Leaf]:
    """Returns the leaves that have a gradient."""
    grads, treedef = jax.tree.flatten(updates, is_leaf=is_nothing)
    trees = [_slots(tree, treedef) for operation in operations for tree in operation.slots]
    only = [[True] * len(grads) if k.only is None else treedef.flatten_up_to(k.only) for k in operations]
    return [
        _Leaf(g, w, [tree[i] for tree in trees], _program(operations, [chosen[i] for chosen in only]))
        for i, (g, w) in enumerate(zip(grads, treedef.flatten_up_to(params), strict=True))
        if not is_nothing(g)
    ]


def _slots(tree: Any, treedef: Any) -> list[StoredSlot]:
    """Describes the slots of an operation, one for every leaf."""
    if isinstance(tree, CodedSlots):
        pairs = zip(treedef.flatten_up_to(tree.data), treedef.flatten_up_to(tree.scales), strict=True)
        return [tree.describe(x, scale) for x, scale in pairs]
    return [StoredSlot.plain(x) for x in treedef.flatten_up_to(tree)]


def _calls(leaves: Sequence[_Leaf], places: dict[int, int]) -> Iterator[Call]:
    """Yields the calls; leaves with the same program, and with slots that are stored alike, share a call."""
    alike: dict[tuple, list[int]] = {}
    for i, leaf in enumerate(leaves):
        alike.setdefault((leaf.program, leaf.kinds), []).append(i)
    for (program, kinds), members in alike.items():
        for k in range(0, len(members), TOGETHER):
            some = members[k : k + TOGETHER]
            slots = list(zip(*(leaves[i].slots for i in some), strict=True))
            arrays = [[x.data for x in row] for row in slots]
            arrays += [[x.scale for x in row] for row in slots if row[0].scale is not None]
            kept = tuple(places[id(x)] for row in arrays for x in row)
            yield Call(program, kinds, tuple(some), kept)


def _program(operations: tuple[KernelOp, ...], chosen: Sequence[bool]) -> tuple[int, ...]:
    """Encodes the chosen operations, ending with `add`, which includes a final "scale"."""
    code, start = [], 0
    for operation, use in zip(operations, chosen, strict=True):
        if use:
            code.append((OPS.index(operation.name), start))
        start += len(operation.scalars)
    last = start  # the index of the 1 that follows all scalars
    if code and code[-1][0] == OPS.index("scale"):
        last = code.pop()[1]
    return tuple(x for pair in (*code, (OPS.index("add"), last)) for x in pair)


def is_float32(scalar: Any) -> bool:
    """Returns whether a number times a float32 array is a float32 array of its shape."""
    return np.shape(scalar) == () and jnp.result_type(scalar, jnp.float32) == jnp.float32
