"""Codes: arrays stored in 8 or 4 bits per element, with one float32 scale per block.

Let a be the largest |x| of a block, and y = |x| / a. With L in the second column, its code c, from 1 to L, obeys

==================  ====  ===========================================================================
signed, 8 bits      127   y = (c − 63) / 64 for y ≥ 1/8; 4 codes per octave below; 0 for y < 2⁻²¹·1.4
unsigned, 8 bits    255   y = (c − 191) / 64 for y ≥ 1/8; 5 codes per octave below; 1 for y < 2⁻⁴²
signed, 4 bits        7   y = (c / 7)², 0 for y < 1/196
unsigned, 4 bits     16   y = (c / 16)², 1 for y < 1/256
==================  ====  ===========================================================================

Within an octave the steps are equal, as in floats. For the result x̂ of `decode(*encode(x))` this means

==================  ==================  =================================  ===========================
signed, 8 bits      |x̂ − x| ≤ a/127     |x̂ − x| ≤ |x|/8 if |x| ≥ 7e-7·a    |x̂| ≤ 1.1·|x|, or 1e-6·a below
unsigned, 8 bits    |v̂ − v| ≤ a/127     |v̂ − v| ≤ v/10 if v ≥ 2e-13·a      v̂ > 0 if v > 0
signed, 4 bits      |x̂ − x| ≤ a/7
unsigned, 4 bits    |v̂ − v| ≤ a/16                                          v̂ > 0 if v > 0
==================  ==================  =================================  ===========================

The companded codes of FlashOptim (arXiv:2602.23349) are the other choice at 8 bits. They spend fewer codes on small
elements, so errors are smaller for large ones, but an element far below the largest of its block becomes 0:

==================  ==================  ===========================================================================
signed, 8 bits      |x̂ − x| ≤ a/127     c = 127·2y / (1 + y), rounded; |x̂ − x| ≤ a/500 near 0
unsigned, 8 bits    |v̂ − v| ≤ a/255     c = 255·√y, rounded, but not to 0 unless y = 0
==================  ==================  ===========================================================================

Unsigned 4-bit codes may have rank-1 scales (arXiv:2309.01507) instead of blocks. The a of an element is then the
smallest of the maxima of its row, its column, and so on for more axes, and |v̂ − v| ≤ a/16 for this a. An element is
stored well if its row or its column has none that is much larger.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.checks import checked
from ...core.ranges import PositiveInt
from ...core.sharding import replicate_from, reshard, shard_count, split_as
from ...placement.mesh import axis_names

SMALLEST = float(np.finfo(np.float32).tiny)
PARTS = 8  # of a block: XLA vectorizes their elementwise maximum, which is taken first
TO_INTEGER = 1.5 * 2**23  # added to a small float32, it leaves the nearest integer in the last bits
TO_INTEGER_BITS = np.float32(TO_INTEGER).view(np.int32)
EVEN, EIGHTH = 64, int(np.float32(1 / 8).view(np.int32))  # equal steps per unit of y; the bits of the y they start at
TIE = 1e-3  # ties go to the smaller code, so that 0.9 times a code always encodes to a smaller one
LEVELS, STEP = {True: 127, False: 255}, {True: 2**23 // 4, False: 2**23 // 5}  # by signed: L; a code in float bits


Code = Literal["octaves", "companded"]
"""Which 8-bit codes: those with codes for many octaves, or the companded ones."""
Scales = Literal["blocks", "rank1"]
"""What scales an element: the maximum of its block, or the smallest of those of its row, its column, and so on."""
Scale = jax.Array | tuple[jax.Array, ...]
"""The maxima of the blocks; rank-1 scales are a tuple with the maxima along each axis, (rows, 1) and (1, columns)."""


def block_size_of(bits: int, code: Code = "octaves") -> int:
    """Returns the default number of elements per block."""
    return 32 if code == "companded" else 256 if bits == 8 else 128


@checked
def encode(
    x: jax.Array,
    bits: Literal[8, 4] = 8,
    block_size: PositiveInt | None = None,
    signed: bool = True,
    code: Code = "octaves",
    scales: Scales = "blocks",
) -> tuple[jax.Array, Scale]:
    """Returns the codes of an array and the scales of its blocks: plain arrays, and all that `decode` needs.

    Args:
        x: a floating array.
        bits: bits per element, 8 or 4.
        block_size: elements per block, ≥ 1; if None, 256 for 8 bits, 128 for 4 and 32 for companded codes. Blocks run
            along the last axis, or along as many trailing axes as it takes to fill one, and divide it evenly.
        signed: whether x may be negative. If False, x must be ≥ 0, and its positive elements do not become 0.
        code: "octaves" or, at 8 bits, "companded".
        scales: "blocks" or, at 4 bits for an x ≥ 0 with at least two axes, "rank1"; there are no blocks then.

    8-bit codes are int8 or uint8 and have the shape of x, so they can be sharded like x. 4-bit codes are packed two
    to a uint8, which makes one axis half as long; if that axis of x has an odd length, a last axis of length 1 is
    appended. Scales of blocks have as many axes as x; rank-1 scales are a tuple with an array for each axis.

    >>> codes, scale = encode(jnp.array([[1.0, -0.5, 0.0, 1e-6]]))
    >>> codes.tolist(), scale.tolist()
    ([[127, -95, 0, 3]], [[1.0]])
    >>> decode(codes, scale)[0, :3].tolist()
    [1.0, -0.5, 0.0]
    """
    needs_8_bits(bits, code)
    given, size = lax.stop_gradient(jnp.asarray(x, jnp.float32)), block_size or block_size_of(bits, code)
    needs_4_bits(bits, scales)
    if bits == 8 and _have_whole_blocks(given, size):
        return _on_each_part(lambda x: encode(x, bits, size, signed, code), (given,), given, 2)
    shape = given.shape
    if scales == "rank1":
        if signed or len(shape) < 2:
            raise ValueError(f"scales='rank1' needs signed=False and at least two axes, got signed={signed}, {shape}")
        x = replicate_from(given, len(shape) - 1)
        scale = tuple(_rounded(_maxima(x, axis)) for axis in range(len(shape)))
        y = jnp.nan_to_num(jnp.abs(x) * _inverse(_smallest(scale)), nan=1.0, posinf=1.0)
        y = y.reshape(*_lead(scale), math.prod(shape[len(_lead(scale)) :]))
    else:
        x = _in_rows(given, size)
        n = x.shape[-1]
        blocks = -(-n // size)
        of_blocks = _rounded(_absmax(x, blocks))
        y = jnp.abs(x) * _spread(_inverse(of_blocks), n)
        ones = (1,) * (len(shape) - x.ndim)
        scale = of_blocks.reshape(*of_blocks.shape[:-1], *ones, blocks) if shape else of_blocks.reshape(())
    if code == "companded":
        c = _nearest(2 * y / (1 + y) * 127 if signed else jnp.sqrt(y) * 255)
    elif bits == 8:
        c = _to_levels(y, signed)
    else:
        c = _nearest(jnp.sqrt(y) * 7) if signed else jnp.maximum(_nearest(jnp.sqrt(y) * 16) - 1, 0)
    if signed:
        c = jnp.where(x < 0, -c, c)
    elif bits == 8:
        c = jnp.maximum(c, (x > 0).astype(jnp.int32))
    packed = c.astype(jnp.int8 if signed else jnp.uint8).reshape(shape) if bits == 8 else _pack(c + 8 * signed, shape)
    return split_as(packed, given), scale


@checked
def decode(
    codes: jax.Array, scale: Scale, bits: Literal[8, 4] = 8, signed: bool = True, code: Code = "octaves"
) -> jax.Array:
    """Returns the float32 array that codes stand for, given the `bits`, `signed` and `code` that `encode` had.

    Raises ValueError for codes and scales that do not fit these or each other.

    >>> decode(*encode(jnp.array([4.0, 1.0, 0.0]), 4, signed=False), 4, signed=False).tolist()
    [4.0, 1.0, 0.015625]
    """
    needs_8_bits(bits, code)
    shape = shape_of(codes, scale, bits, signed)
    if (
        bits == 8
        and not isinstance(scale, tuple)
        and scale.ndim
        and _have_whole_blocks(codes, codes.shape[-1] // scale.shape[-1])
    ):
        return _on_each_part(lambda c, s: decode(c, s, bits, signed, code), (codes, scale), codes, 1)
    lead, given = _lead(scale), codes
    codes = replicate_from(codes, len(lead))
    n = int(np.prod(shape[len(lead) :]))
    c = (codes.reshape(*lead, n) if bits == 8 else _unpack(codes, lead, shape)).astype(jnp.int32)
    if code == "companded":
        z = c * (1 / LEVELS[signed])
        y = z / (2 - jnp.abs(z)) if signed else jnp.square(z)
    elif bits == 8:
        y = _of_levels(jnp.abs(c), signed)
        y = jnp.where(c < 0, -y, y) if signed else y
    elif signed:
        y = (c - 8) * (1 / 7)
        y = y * jnp.abs(y)
    else:
        y = jnp.square((c + 1) * (1 / 16))
    if isinstance(scale, tuple):
        return split_as(y.reshape(shape) * _smallest(scale), given)
    return split_as((y * _spread(scale.reshape(*lead, -1), n)).reshape(shape), given)


def needs_8_bits(bits: int, code: Code) -> None:
    if code == "companded" and bits != 8:
        raise ValueError(f"code='companded' needs bits=8, got bits={bits}")


def needs_4_bits(bits: int, scales: Scales) -> None:
    if scales == "rank1" and bits != 4:
        raise ValueError(f"scales='rank1' needs bits=4, got bits={bits}")


def _all_but(axis: int, ndim: int) -> tuple[int, ...]:
    return tuple(i for i in range(ndim) if i != axis)


def _maxima(x: jax.Array, axis: int) -> jax.Array:
    """Returns the largest |x| of each slice along an axis, as an array with as many axes."""
    return jnp.max(jnp.abs(x), _all_but(axis, x.ndim), keepdims=True, initial=0)


def _smallest(scale: tuple[jax.Array, ...]) -> jax.Array:
    return functools.reduce(jnp.minimum, scale)


def _rounded(scale: jax.Array) -> jax.Array:
    """Drops the last bits of maxima, since decoding and encoding again moves one by about an ulp."""
    return lax.reduce_precision(scale, exponent_bits=8, mantissa_bits=15)


def _inverse(scale: jax.Array) -> jax.Array:
    return jnp.where(scale >= SMALLEST, 1 / jnp.maximum(scale, SMALLEST), 0)


def _have_whole_blocks(x: jax.Array, size: int) -> bool:
    """Returns whether the type of an array splits its last axis into parts that hold whole blocks of this size."""
    parts = shard_count(x, -1) if x.ndim else 1
    return parts > 1 and x.shape[-1] % (parts * size) == 0


def _on_each_part(fn: Callable, arrays: tuple[jax.Array, ...], like: jax.Array, results: int) -> Any:
    """Returns `fn` of the parts of arrays of the same rank, split as the type of `like` says, where they lie."""
    sharding = jax.typeof(like).sharding
    out = (sharding.spec,) * results if results > 1 else sharding.spec
    arrays = tuple(reshard(x, sharding.spec) for x in arrays)
    names = {name for entry in sharding.spec for name in axis_names(entry)}
    return jax.shard_map(fn, mesh=sharding.mesh, in_specs=sharding.spec, out_specs=out, axis_names=names)(*arrays)


def shape_of(codes: jax.Array, scale: Scale, bits: int, signed: bool) -> tuple[int, ...]:
    """Returns the shape of the encoded array. Raises ValueError if the codes and scales are not of one array."""
    dtype = jnp.int8 if bits == 8 and signed else jnp.uint8
    parts = scale if isinstance(scale, tuple) else (scale,)
    if codes.dtype != dtype or any(x.dtype != jnp.float32 for x in parts):
        received = f"{codes.dtype} with a scale of {' and '.join(str(x.dtype) for x in parts)}"
        raise ValueError(f"codes of {bits} bits must be {np.dtype(dtype)} with a scale of float32, got {received}")
    shape, lead = tuple(codes.shape), _lead(scale)
    if bits == 4 and _by_rows(lead):
        shape = (*shape[: len(lead) - 1], 2 * shape[len(lead) - 1], *shape[len(lead) :])
    elif bits == 4 and parts[0].ndim:
        odd = len(shape) > parts[0].ndim
        shape = (*shape[:-2], 2 * shape[-2] - 1) if odd else (*shape[:-1], 2 * shape[-1])
    if isinstance(scale, tuple):
        fits = shape == _shape_of_rank_1(scale) and bits == 4 and not signed
    else:
        row = int(np.prod(shape[len(lead) :]))
        fits = len(shape) == scale.ndim and shape[: len(lead)] == lead and not (shape and row < scale.shape[-1])
    if not fits:
        of = " and ".join(str(x.shape) for x in parts)
        raise ValueError(f"codes of shape {codes.shape} and scales of shape {of} are not of the same array")
    return shape


def _shape_of_rank_1(scale: tuple[jax.Array, ...]) -> tuple[int, ...] | None:
    """Returns the shape of the array whose maxima along each axis are given; None if they are of none."""
    n = len(scale)
    if any(x.ndim != n or any(x.shape[i] != 1 for i in _all_but(axis, n)) for axis, x in enumerate(scale)):
        return None
    return tuple(x.shape[axis] for axis, x in enumerate(scale))


def in_halves(scale: Scale) -> bool:
    """Returns whether a byte holds two 4-bit codes of one row, rather than of two neighbouring rows."""
    return not _by_rows(_lead(scale))


def _to_levels(y: jax.Array, signed: bool) -> jax.Array:
    """Returns the 8-bit codes, from 0, of numbers from 0 to 1."""
    top, step = LEVELS[signed], STEP[signed]
    bits = _bits(y)
    even = EVEN * y + (top - EVEN)
    octaves = (bits - EIGHTH).astype(jnp.float32) * (1 / step) + (top - EVEN * 7 // 8)
    return _nearest(jnp.maximum(jnp.where(bits >= EIGHTH, even, octaves) - TIE, 0))


def _of_levels(c: jax.Array, signed: bool) -> jax.Array:
    top, step = LEVELS[signed], STEP[signed]
    even = (c - (top - EVEN)).astype(jnp.float32) * (1 / EVEN)
    least = top - EVEN * 7 // 8
    octaves = lax.bitcast_convert_type((c - least) * step + EIGHTH, jnp.float32)
    return jnp.where(c >= least, even, jnp.where(c > 0, octaves, 0))


def _lead(scale: Scale) -> tuple[int, ...]:
    """Returns the lengths of the axes before those that blocks run along; with rank-1 scales, before the last one."""
    lead = ((_shape_of_rank_1(scale) or ()) if isinstance(scale, tuple) else tuple(scale.shape))[:-1]
    while lead and lead[-1] == 1:
        lead = lead[:-1]
    return lead


def _by_rows(lead: tuple[int, ...]) -> bool:
    """Returns whether bytes pair neighbouring rows, which is faster: if there are enough rows to shard in pairs."""
    return bool(lead) and lead[-1] >= 64 and lead[-1] % 2 == 0


def _pack(c: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Packs two codes into one byte: those of neighbouring rows, or of the two halves of the last axis."""
    lead = c.shape[:-1]
    if _by_rows(lead):
        pairs, packed = c.reshape(*lead[:-1], -1, 2, c.shape[-1]), (*lead[:-1], lead[-1] // 2, *shape[len(lead) :])
    else:
        n = shape[-1] if shape else 1
        c = _pad(c.reshape(*shape[:-1], n), n + n % 2)
        pairs = c.reshape(*shape[:-1], 2, -1)
        packed = (*shape[:-1], (n + 1) // 2, *(1,) * (n % 2)) if shape else ()
    # as a reduction, since XLA would otherwise compute c twice
    return jnp.sum(pairs << (4 * jnp.arange(2)[:, None]), -2).astype(jnp.uint8).reshape(packed)


def _unpack(codes: jax.Array, lead: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    """Returns the unpacked codes in the shape (*lead, row)."""
    if _by_rows(lead):
        codes = codes.reshape(*lead[:-1], lead[-1] // 2, 1, -1)
    else:
        codes = codes.reshape(*shape[:-1], 1, -1)
    pairs = (codes >> (4 * jnp.arange(2, dtype=jnp.uint8)[:, None])) & 15
    if not _by_rows(lead):
        pairs = pairs.reshape(*shape[:-1], -1)[..., : shape[-1] if shape else 1]
    return pairs.reshape(*lead, -1)


def _in_rows(x: jax.Array, block_size: int) -> jax.Array:
    """Merges trailing axes until a row fills a block, and axes of length 1 before them."""
    axis = max(x.ndim - 1, 0)
    while axis > 0 and (x.shape[axis - 1] == 1 or np.prod(x.shape[axis:]) < block_size):
        axis -= 1
    return replicate_from(x, axis).reshape(*x.shape[:axis], int(np.prod(x.shape[axis:])))


def _absmax(x: jax.Array, blocks: int) -> jax.Array:
    """Returns max |x| of the blocks along the last axis; NaN for a block with a NaN.

    Compares the bits as integers, because XLA vectorizes their maximum. They sort like the floats, NaN above all.
    """
    size = -(-x.shape[-1] // blocks)
    lanes = size // PARTS if size % PARTS == 0 else 1
    y = _pad(_bits(jnp.abs(x)), blocks * size).reshape(*x.shape[:-1], blocks, -1, lanes)
    y = lax.optimization_barrier(jnp.max(y, -2))  # in two steps, to leave the inner loop something to vectorize
    return jnp.max(lax.bitcast_convert_type(y, jnp.float32), -1)


def _spread(scale: jax.Array, n: int) -> jax.Array:
    """Repeats the number of each block for its elements, n in all."""
    size = -(-n // scale.shape[-1])
    return jnp.broadcast_to(scale[..., None], (*scale.shape, size)).reshape(*scale.shape[:-1], -1)[..., :n]


def _pad(x: jax.Array, n: int) -> jax.Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, n - x.shape[-1])]) if n > x.shape[-1] else x


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.int32)


def _nearest(x: jax.Array) -> jax.Array:
    """Returns the integers nearest to small numbers, without the checks of a conversion."""
    return _bits(x + TO_INTEGER) - TO_INTEGER_BITS
