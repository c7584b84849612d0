"""quantize_state: an optimizer's slots in 8 or 4 bits per element."""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...core import kernels
from ...core.checks import Static
from ...core.leaves import Tree
from ...core.paths import AllParams
from ...core.ranges import Count, PositiveInt
from ...core.slots import SIGNED, UNSIGNED, Exact, SlotPlace, States, map_slots, slots_of
from ...core.transformation import GradientTransformation, Transformation, transformation
from ...placement.like import keep_placement
from . import codes


class QuantizeState(NamedTuple):
    """`inner_state`: the inner state, with codes in place of large slots. `scale`: for each slot that may have codes,
    a tree like it with the scales of the codes' blocks, or a tuple of rank-1 scales, and None for leaves that are
    stored as they are."""

    inner_state: States
    scale: Exact


@transformation
class quantize_state(GradientTransformation):
    """Stores the slots of an optimizer in 8 or 4 bits per element, with one float32 scale per block.

    Before each step the slots are decoded to float32, and after it they are encoded again. This applies to slots that
    their state declares as signed (such as first moments) or as never negative (such as second moments). Params,
    counters, keys and undeclared fields stay as they are. Let a be the largest |x| of a block. At 8 bits
    |x̂ − x| ≤ a/127, and

        signed:    |x̂ − x| ≤ |x|/8 down to |x| = 7e-7·a;
        unsigned:  |v̂ − v| ≤ v/10 down to v = 2e-13·a, and no v > 0 becomes zero: the update would divide by eps.

    See `functional_opt.codes` for the formats. A block of zeros stays zero. A NaN or an infinity makes every element
    of its block non-finite. Leaves without an update keep their codes. Each value gets the nearest code, so a mean
    with a long memory misses changes that per step are less than half the distance between two codes; a mean with a
    decay of at most 0.9 follows them.

    Adam's state takes 2.03 bytes per element at 8 bits, 1.06 at 4 bits and 2.25 with companded codes, instead of 8.

    `master_weights(quantize_state(adamw(1e-3), code="companded"), "int8")` is FlashOptim's AdamW, which needs 7 bytes
    per element, besides the scales, with bfloat16 params and gradients.

    Args:
        inner: an optimizer that works element by element.
        bits: bits per element, 8 or 4.
        block_size: elements per block, ≥ 1; if None, 256 for 8 bits, 128 for 4 and 32 for companded codes.
        min_size: leaves with fewer elements are stored as they are, a whole number ≥ 0.
        unsigned, signed: names of fields, or keys of a dict, to encode in states that declare no slots, such as those
            of other libraries.
        code: "octaves" for the codes above or, at 8 bits, "companded" for FlashOptim's: |x̂ − x| ≤ a/127 and, with an
            even finer step for small elements, |v̂ − v| ≤ a/255; but no bound relative to |x|.
        scales: "blocks" or, at 4 bits, "rank1" for never-negative slots with two or more axes longer than 1. Then
            |v̂ − v| ≤ a/16 with a the smallest of the maxima of the element's row, its column, and so on, one float32
            per row and column: columns of large elements leave the accuracy of the others alone. There is no CPU
            kernel for them, and on a mesh maxima over a split axis take an all-reduce.

    Raises ValueError for companded codes of 4 bits and for rank-1 scales of 8 bits.

    Complex slots are stored as they are. The state consists of plain arrays: `decode(state)` returns the inner state
    in floats, and `encode(inner_state)` is the inverse. `explain` lists the large slots that are stored as they are.

    Dettmers, Lewis, Shleifer & Zettlemoyer 2021, arXiv:2110.02861 (blocks, 8 bits); Li, Chen & Zhu 2023,
    arXiv:2309.01507 (4 bits, no zero in second moments, rank-1 scales); Gonzalez Ortiz, Gupta, Renard & Blalock 2026,
    arXiv:2602.23349 (FlashOptim's companded codes).

    >>> from functional_opt import adam
    >>> tx = quantize_state(adam(1e-3))
    >>> state = tx.init({"kernel": jnp.zeros((64, 256)), "bias": jnp.zeros(256)})
    >>> mu = state.inner_state[0].mu
    >>> mu["kernel"].dtype, state.scale[0]["kernel"].shape, mu["bias"].dtype, state.scale[0]["bias"]
    (dtype('int8'), (64, 1), dtype('float32'), None)

    Differs from the papers: codes are computed rather than looked up in a table; 4-bit codes of second moments stand
    for squares rather than equal steps, with rank-1 scales, too; the scales of companded codes are float32 instead of
    float16, which cannot hold the root of a small second moment, and v > 0 does not become 0.
    """

    inner: Transformation
    bits: Static[Literal[8, 4]] = 8
    block_size: Static[PositiveInt | None] = None
    min_size: Static[Count] = 4096
    unsigned: Static[tuple[str, ...]] = ()
    signed: Static[tuple[str, ...]] = ()
    code: Static[codes.Code] = "octaves"
    scales: Static[codes.Scales] = "blocks"

    def __post_init__(self):
        codes.needs_8_bits(self.bits, self.code)
        codes.needs_4_bits(self.bits, self.scales)

    def init(self, params):
        state = self.inner.init(params)
        if isinstance(params, AllParams):  # only asks where the slots are
            return QuantizeState(state, tuple(place.value for place in self._slots(state)))
        return self.encode(state)

    def update(self, updates, state, params=None, **extra):
        self._check(state)

        def pure(updates, state, params):
            updates, inner_state = self.inner.update(updates, self.decode(state), params, **extra)
            return updates, keep_placement(self._encode(inner_state, state.scale), state)

        return kernels.step(self, pure, updates, state, params)

    def as_kernel(self, state, params):
        links = kernels.operations_of(self.inner, state.inner_state, params)
        if links is None or self.scales != "blocks":
            return None
        coded = {
            id(place.value): kernels.CodedSlots(
                place.value, scale, partial(_as_slot, self.bits, _is_signed(place), self.code)
            )
            for place, scale in zip(self._slots(state.inner_state), state.scale, strict=True)
        }
        return tuple(k._replace(slots=tuple(coded.get(id(tree), tree) for tree in k.slots)) for k in links)

    def stored_with(self, inner):
        return dataclasses.replace(self, inner=inner)

    def uncoded(self, params: Tree) -> list[str]:
        """Returns the slots with large leaves that are stored as they are, and why; for `explain`.

        >>> import optax
        >>> quantize_state(optax.trace(0.9), min_size=0).uncoded({"w": jnp.ones(4)})
        [".trace['w'] (not declared)"]
        """
        found = slots_of(jax.eval_shape(self.inner.init, params), self._named)
        return [
            f"{place.name} ({place.slot.kind if place.slot else 'not declared'})"
            for place in found
            if not self._has_codes(place) and any(map(self._is_large, jax.tree.leaves(place.value)))
        ]

    def encode(self, state: Any) -> QuantizeState:
        """Returns the state for `update`, given a state of the inner transformation with slots in floats.

        >>> from functional_opt import adam, tree
        >>> tx = quantize_state(adam(1e-3), min_size=0)
        >>> inner_state = tx.decode(tx.init({"w": jnp.zeros(4)}))
        >>> state = tx.encode(tree.set(inner_state, mu={"w": jnp.ones(4)}))
        >>> state.inner_state[0].mu["w"].tolist()
        [127, 127, 127, 127]
        """
        if isinstance(state, QuantizeState):
            raise TypeError(
                "encode needs the state of the inner transformation, got a QuantizeState, which is encoded already"
            )
        return self._encode(state, None)

    def decode(self, state: QuantizeState) -> Any:
        """Returns the state of the inner transformation, with float32 in place of codes.

        Raises ValueError, naming the leaf, for codes without their scale or a scale without its codes.
        """
        self._check(state)
        scales = iter(state.scale)

        def floats(place):
            if not self._has_codes(place):
                return place.value
            paths, leaves, tree = _leaves(place)
            try:
                there = tree.flatten_up_to(next(scales))
            except ValueError as e:
                raise ValueError(f"{place.name} and its scale are not alike: {e}") from e
            signed = _is_signed(place)
            rows = zip(paths, leaves, there, strict=True)
            return tree.unflatten([_decoded(path, x, scale, self.bits, signed, self.code) for path, x, scale in rows])

        return map_slots(floats, state.inner_state, self._named)

    def _encode(self, state: Any, before: Any) -> QuantizeState:
        """Encodes the leaves that had codes in the scales `before`, or all large leaves if that is None."""
        scales, old = [], iter(before or ())

        def stored(place):
            if not self._has_codes(place):
                return place.value
            _, leaves, tree = _leaves(place)
            there = (
                [() if self._is_large(x) else None for x in leaves]
                if before is None
                else tree.flatten_up_to(next(old))
            )
            signed = _is_signed(place)
            pairs = [self._coded(x, signed, scale) for x, scale in zip(leaves, there, strict=True)]
            scales.append(tree.unflatten([scale for _, scale in pairs]))
            return tree.unflatten([x for x, _ in pairs])

        return QuantizeState(map_slots(stored, state, self._named), tuple(scales))

    def _check(self, state: Any) -> None:
        if not isinstance(state, QuantizeState):
            received = f"a {type(state).__name__}; encode(state) converts a state of the inner transformation"
            raise ValueError(f"quantize_state needs the QuantizeState that its init made, got {received}")
        slots, scales = [place.name for place in self._slots(state.inner_state)], state.scale
        if not isinstance(scales, list | tuple) or len(scales) != len(slots):
            received = f"{len(scales)}" if isinstance(scales, list | tuple) else f"a {type(scales).__name__}"
            raise ValueError(f"quantize_state needs a tuple of scales for each of {', '.join(slots)}, got {received}")

    @property
    def _named(self) -> dict:
        return dict.fromkeys(self.unsigned, UNSIGNED) | dict.fromkeys(self.signed, SIGNED)

    def _slots(self, state: Any) -> list[SlotPlace]:
        return [place for place in slots_of(state, self._named) if self._has_codes(place)]

    def _has_codes(self, place: SlotPlace) -> bool:
        return place.slot is not None and place.slot.bits <= self.bits

    def _coded(self, x: Any, signed: bool, before: Any) -> tuple[Any, Any]:
        """Returns codes and scale, in the container of the scale before; x and None if that was None."""
        if before is None:
            return x, None
        scales = "blocks" if signed or sum(n > 1 for n in np.shape(x)) < 2 else self.scales
        c, scale = codes.encode(x, self.bits, self.block_size, signed, self.code, scales)
        like, new = jax.tree.structure(before), jax.tree.leaves(scale)
        return c, like.unflatten(new) if like.num_leaves == len(new) else scale

    def _is_large(self, x: Any) -> bool:
        return jnp.issubdtype(jnp.result_type(x), jnp.floating) and np.size(x) >= max(self.min_size, 1)


def _is_signed(place: SlotPlace) -> bool:
    return place.slot is not None and place.slot.kind == "signed"


def _leaves(place: SlotPlace) -> tuple[list[str], list, Any]:
    found, tree = jax.tree_util.tree_flatten_with_path(place.value)
    return [place.name + jax.tree_util.keystr(path) for path, _ in found], [x for _, x in found], tree


def _decoded(path: str, x: Any, scale: Any, bits: Literal[8, 4], signed: bool, code: codes.Code) -> Any:
    remedy = "take codes and scale from the same state, or convert a state in floats with `encode`"
    if scale is None:
        if jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"{path} has codes ({x.dtype}) without their scale: {remedy}")
        return x
    parts = jax.tree.leaves(scale)  # in whatever container a library put a tuple
    if not all(hasattr(x, "shape") for x in parts):
        raise ValueError(f"{path} has a {type(scale).__name__} in place of its scale: {remedy}")
    try:
        return codes.decode(x, scale if hasattr(scale, "shape") else tuple(parts), bits, signed, code)
    except ValueError as e:
        raise ValueError(f"{path}: {e}; {remedy}") from e


def _as_slot(bits: int, signed: bool, code: codes.Code, x: Any, scale: Any) -> kernels.StoredSlot:
    """Describes a slot to the kernel, which cannot read 4-bit codes that pair the two halves of a row."""
    if scale is None:
        return kernels.StoredSlot.plain(x)
    kind = f"{'companded_' if code == 'companded' else ''}{'' if signed else 'u'}int{bits}"
    kind = "halves" if bits == 4 and codes.in_halves(scale) else kind
    return kernels.StoredSlot(x, kind, codes.shape_of(x, scale, bits, signed), scale)
