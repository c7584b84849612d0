"""quantize_state: an optimizer's slots in 8 or 4 bits an element."""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import native
from ..base import GradientTransformation, Transformation, transformation
from ..paths import AllParams, MaskedNode
from ..slots import Exact, States
from ..value import Count, PositiveInt, Static, value

UNSIGNED = (
    *("nu", "nu_max", "sum_of_squares", "exp_avg_sq", "accumulator", "e_g", "e_x"),
    *("grad_sum_sq", "grad_sum_of_squares", "n", "v_row", "v_col", "step_sizes"),
)
"""What the library's states call slots that are never negative and stand in a denominator."""

KEPT = ("z", "slow", "x0", "params0", "init_params", "init_particles", "params", "acc_grads")
"""What they call slots that are params themselves, or sums over few steps."""

SMALLEST = float(np.finfo(np.float32).tiny)
PARTS = 8  # of a block: their elementwise maximum is taken first, which XLA vectorizes
TO_INTEGER = 1.5 * 2**23  # added to a small float32, leaves the nearest integer in its last bits
TO_INTEGER_BITS = np.float32(TO_INTEGER).view(np.int32)


@value
class Blocks:
    """`scale`: the largest |x| of every block, float32. `shape`: of the slot whose codes they belong to."""

    scale: Any
    shape: Static[tuple[int, ...]]


class QuantizeState(NamedTuple):
    """`inner_state`: the inner state, with codes for its large slots. `scale`: for each of its trees of slots, the
    `Blocks` of the codes, `MaskedNode()` for leaves that are stored as they are."""

    inner_state: States
    scale: Exact


@transformation
class quantize_state(GradientTransformation):
    """Keeps the slots of an optimizer in 8 or 4 bits an element, with one float32 scale a block.

    Before a step every slot is decoded to float32, after it encoded again: with a = max |x| over a block,

        signed:            c = round(L·√(|x|/a))·sign(x), x̂ = sign(c)·(c/L)²·a;  L = 127 or 7
        unsigned, 8 bits:  c = round(255·(v/a)^¼), at least 1 for v > 0, v̂ = (c/255)⁴·a
        unsigned, 4 bits:  c = round(16·√(v/a)), at least 1, v̂ = (c/16)²·a

    so that |x̂ − x| ≤ a/127 at 8 bits, a/7 at 4. A block of zeros stays one, and in unsigned slots (second moments)
    nothing else becomes zero, which would divide by eps. A block with a NaN or an infinity is no longer finite as
    a whole. Leaves without an update keep their codes.

    Adam's state takes 2.03 bytes an element at 8 bits instead of 8, and 1.06 at 4.

    Args:
        inner: an optimizer that works element by element. What keeps params in its state (`lookahead`, an average,
            `schedule_free`) goes around this one, not into it; slots of such names are left alone.
        bits: 8 or 4.
        block_size: elements of a block, ≥ 1; 256 for 8 bits and 128 for 4 if None. Blocks lie along the last axis,
            or along as many of the last axes as it takes to fill one, and divide it evenly.
        min_size: leaves with fewer elements are stored as they are, a whole number ≥ 0.
        unsigned: names of fields of states whose slots are never negative, besides those of the library.

    Codes of 8 bits are int8 or uint8 and have the slot's shape, so that they can be sharded as it is; those of 4 bits
    are two in a uint8, an axis half as long. Slots that are complex are left alone.

    Dettmers, Lewis, Shleifer & Zettlemoyer 2021, arXiv:2110.02861 (blocks, 8 bits); Li, Chen & Zhu 2023,
    arXiv:2309.01507 (4 bits, no zero in second moments).

    >>> from functional_opt import adam
    >>> tx = quantize_state(adam(1e-3))
    >>> state = tx.init({"kernel": jnp.zeros((64, 256)), "bias": jnp.zeros(256)})
    >>> mu = state.inner_state[0].mu
    >>> mu["kernel"].dtype, state.scale[0]["kernel"].scale.shape, mu["bias"].dtype
    (dtype('int8'), (64, 1), dtype('float32'))

    Differs from the papers: codes are powers rather than entries of a table, which would be looked up for every
    element (the error of Adam's direction is a little smaller); no rank-1 scales.
    """

    inner: Transformation
    bits: Static[Literal[8, 4]] = 8
    block_size: Static[PositiveInt | None] = None
    min_size: Static[Count] = 4096
    unsigned: Static[tuple[str, ...]] = ()

    def init(self, params):
        state = self.inner.init(params)
        return QuantizeState(state, 0) if isinstance(params, AllParams) else self._encode(state, None)

    def update(self, updates, state, params=None, **extra):
        def pure(updates, state, params):
            updates, inner_state = self.inner.update(updates, self._decode(state), params, **extra)
            return updates, self._encode(inner_state, state.scale)

        return native.step(self, pure, updates, state, params)

    def as_kernel(self, state, params):
        links = native.links_of(self.inner, state.inner_state, params)
        if links is None:
            return None
        slots, names, treedef = self._slots()
        coded, scales = {}, iter(state.scale)
        for is_slot, name, part in zip(slots, names, treedef.flatten_up_to(state.inner_state), strict=True):
            if is_slot:
                coded[id(part)] = native.Slots(part, next(scales), partial(as_slot, self.bits, self._signed(name)))
        return tuple(k._replace(slots=tuple(coded.get(id(tree), tree) for tree in k.slots)) for k in links)

    def stored(self, inner):
        """For `explain`: one whose state is that of a transformation within this one as it is stored."""
        return dataclasses.replace(self, inner=inner)

    def _slots(self) -> tuple[list[bool], list[str], Any]:
        """Of every part of the inner state: whether it stands for the params, its field's name; and the structure."""
        places = self.inner.init(AllParams())
        found, treedef = jax.tree_util.tree_flatten_with_path(places, is_leaf=lambda x: isinstance(x, AllParams))
        names = [[getattr(k, "name", getattr(k, "key", "")) for k in path] for path, _ in found]
        return [isinstance(x, AllParams) for _, x in found], [n[-1] if n else "" for n in names], treedef

    def _encode(self, state: Any, before: Any) -> QuantizeState:
        """The state with codes: of the leaves that had codes before, if there is a before."""
        slots, names, treedef = self._slots()
        size = self.block_size or (256 if self.bits == 8 else 128)
        parts, scales, old = [], [], iter(before or ())
        for is_slot, name, part in zip(slots, names, treedef.flatten_up_to(state), strict=True):
            if is_slot:
                signed = self._signed(name)
                leaves, tree = jax.tree.flatten(part)
                if before is None:
                    chosen = [name not in KEPT and self._is_large(x) for x in leaves]
                else:
                    chosen = [isinstance(x, Blocks) for x in tree.flatten_up_to(next(old))]
                pairs = [
                    encode(x, self.bits, size, signed) if yes else (x, MaskedNode())
                    for x, yes in zip(leaves, chosen, strict=True)
                ]
                part = tree.unflatten([codes for codes, _ in pairs])
                scales.append(tree.unflatten([scale for _, scale in pairs]))
            parts.append(part)
        return QuantizeState(treedef.unflatten(parts), tuple(scales))

    def _decode(self, state: QuantizeState) -> Any:
        slots, names, treedef = self._slots()
        parts, scales = [], iter(state.scale)
        for is_slot, name, part in zip(slots, names, treedef.flatten_up_to(state.inner_state), strict=True):
            if is_slot:
                signed = self._signed(name)
                part = jax.tree.map(
                    lambda c, s, signed=signed: decode(c, s, self.bits, signed) if isinstance(s, Blocks) else c,
                    part,
                    next(scales),
                )
            parts.append(part)
        return treedef.unflatten(parts)

    def _signed(self, name: str) -> bool:
        return name not in UNSIGNED + self.unsigned

    def _is_large(self, x: Any) -> bool:
        return jnp.issubdtype(jnp.result_type(x), jnp.floating) and np.size(x) >= max(self.min_size, 1)


def encode(x: jax.Array, bits: int, block_size: int, signed: bool) -> tuple[jax.Array, Blocks]:
    """The codes of an array, and the scales of its blocks."""
    shape, x = np.shape(x), lax.stop_gradient(jnp.asarray(x, jnp.float32))
    x = _in_rows(x, block_size)
    n = x.shape[-1]
    blocks = -(-n // block_size)
    # A maximum that was decoded and encoded again is an ulp or so away: the last bits are cut for it to stay.
    scale = lax.reduce_precision(_absmax(x, blocks), exponent_bits=8, mantissa_bits=15)
    y = jnp.abs(x) * _spread(jnp.where(scale >= SMALLEST, 1 / jnp.maximum(scale, SMALLEST), 0), n)
    if signed:
        sign = _bits(x) & np.int32(-(2**31))
        c = _nearest(lax.bitcast_convert_type(_bits(jnp.sqrt(y) * (127 if bits == 8 else 7)) | sign, jnp.float32))
    elif bits == 8:
        c = jnp.maximum(_nearest(jnp.sqrt(jnp.sqrt(y)) * 255), (x > 0).astype(jnp.int32))
    else:
        c = jnp.maximum(_nearest(jnp.sqrt(y) * 16) - 1, 0)
    if bits == 8:
        return c.astype(jnp.int8 if signed else jnp.uint8).reshape(shape), Blocks(scale, shape)
    return _pack(c + 8 if signed else c), Blocks(scale, shape)


def decode(codes: jax.Array, blocks: Blocks, bits: int, signed: bool) -> jax.Array:
    """What `encode` made codes of, in float32."""
    scale, shape = blocks.scale, blocks.shape
    lead = scale.shape[:-1]
    n = int(np.prod(shape[len(lead) :]))
    c = (codes if bits == 8 else _unpack(codes, (*lead, n))).reshape(*lead, n).astype(jnp.float32)
    # Each factor is at most 1, so that nothing but the result can underflow.
    if signed:
        c = c * (1 / 127) if bits == 8 else (c - 8) * (1 / 7)
        y = c * jnp.abs(c)
    elif bits == 8:
        c = jnp.square(c * (1 / 255))
        y = c * c
    else:
        y = jnp.square((c + 1) * (1 / 16))
    return (y * _spread(scale, n)).reshape(shape)


def as_slot(bits: int, signed: bool, codes: Any, blocks: Any) -> native.Slot:
    """What the kernel is told of a slot; it cannot go through codes of 4 bits that are in the halves of a row."""
    if not isinstance(blocks, Blocks):
        return native.Slot(codes, str(codes.dtype), codes.shape)
    lead = blocks.scale.shape[:-1]
    in_halves = bits == 4 and not _by_rows((*lead, int(np.prod(blocks.shape[len(lead) :]))))
    kind = "halves" if in_halves else f"{'' if signed else 'u'}int{bits}"
    return native.Slot(codes, kind, blocks.shape, blocks.scale)


def _pack(c: jax.Array) -> jax.Array:
    """Two codes in one number: those of neighbouring rows, or of the halves of a row where there are too few rows."""
    if _by_rows(c.shape):
        c = c.reshape(*c.shape[:-2], -1, 2, c.shape[-1])
    else:
        c = _pad(c, c.shape[-1] + c.shape[-1] % 2).reshape(*c.shape[:-1], 2, -1)
    return jnp.sum(c << (4 * jnp.arange(2)[:, None]), -2).astype(jnp.uint8)  # a reduction, or XLA computes c twice


def _unpack(codes: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    pairs = (codes[..., None, :] >> (4 * jnp.arange(2, dtype=jnp.uint8)[:, None])) & 15
    return pairs.reshape(shape) if _by_rows(shape) else pairs.reshape(*shape[:-1], -1)[..., : shape[-1]]


def _by_rows(shape: tuple[int, ...]) -> bool:
    """Whether rows are many enough to be sharded in pairs; which half an element is in then goes by row: faster."""
    return len(shape) > 1 and shape[-2] >= 64 and shape[-2] % 2 == 0


def _in_rows(x: jax.Array, block_size: int) -> jax.Array:
    """With as many of the last axes as one as it takes to fill a block."""
    axis = max(x.ndim - 1, 0)
    while axis > 0 and np.prod(x.shape[axis:]) < block_size:
        axis -= 1
    return x.reshape(*x.shape[:axis], int(np.prod(x.shape[axis:])))


def _absmax(x: jax.Array, blocks: int) -> jax.Array:
    """max |x| of blocks along the last axis; NaN where one is.

    As integers, whose maximum XLA vectorizes; they are in the order of the floats, and NaN is above all.
    """
    size = -(-x.shape[-1] // blocks)
    lanes = size // PARTS if size % PARTS == 0 else 1
    y = _pad(_bits(jnp.abs(x)), blocks * size).reshape(*x.shape[:-1], blocks, -1, lanes)
    y = lax.optimization_barrier(jnp.max(y, -2))  # in two steps, or the inner loop has nothing to vectorize
    return jnp.max(lax.bitcast_convert_type(y, jnp.float32), -1)


def _spread(scale: jax.Array, n: int) -> jax.Array:
    """A number for each block as one for each of n elements."""
    size = -(-n // scale.shape[-1])
    return jnp.broadcast_to(scale[..., None], (*scale.shape, size)).reshape(*scale.shape[:-1], -1)[..., :n]


def _pad(x: jax.Array, n: int) -> jax.Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, n - x.shape[-1])]) if n > x.shape[-1] else x


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.int32)


def _nearest(x: jax.Array) -> jax.Array:
    """The nearest integers to small numbers, without the checks of a conversion."""
    return _bits(x + TO_INTEGER) - TO_INTEGER_BITS
