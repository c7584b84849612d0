"""quantize_state: an optimizer's slots in 8 or 4 bits an element."""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...core import kernels
from ...core.leaves import Tree
from ...core.paths import AllParams
from ...core.ranges import Count, PositiveInt
from ...core.slots import SIGNED, UNSIGNED, Exact, SlotPlace, States, map_slots, slots_of
from ...core.transformation import GradientTransformation, Transformation, transformation
from ...core.value import Static
from . import codes


class QuantizeState(NamedTuple):
    """`inner_state`: the inner state, with codes in place of large slots. `scale`: for each slot that may have codes
    a tree like it, with the scales of the codes' blocks, and None for leaves that are stored as they are."""

    inner_state: States
    scale: Exact


@transformation
class quantize_state(GradientTransformation):
    """Keeps the slots of an optimizer in 8 or 4 bits an element, with one float32 scale a block.

    Before a step every slot is decoded to float32, after it encoded again: those that their state declares as signed
    (such as first moments) or never negative (second moments). Params, counters, keys and what is not declared stay
    as they are. For a the largest |x| of a block, at 8 bits |x̂ − x| ≤ a/127, and

        signed:    |x̂ − x| ≤ |x|/8 down to |x| = 7e-7·a;
        unsigned:  |v̂ − v| ≤ v/10 down to v = 2e-13·a, and nothing becomes zero, which would divide by eps.

    See `functional_opt.codes` for the formats. A block of zeros stays one; one with a NaN or an infinity is no longer
    finite anywhere. Leaves without an update keep their codes. Codes are the nearest ones, so a mean with a long
    memory does not follow changes of less than half the distance of two codes a step; one with a decay of at most
    0.9 does.

    Adam's state takes 2.03 bytes an element at 8 bits instead of 8, and 1.06 at 4.

    Args:
        inner: an optimizer that works element by element.
        bits: 8 or 4.
        block_size: elements of a block, ≥ 1; 256 for 8 bits and 128 for 4 if None.
        min_size: leaves with fewer elements are stored as they are, a whole number ≥ 0.
        unsigned, signed: names of fields, or keys of a dict, that are slots where a state declares nothing, as those
            of other libraries.

    Slots that are complex are left alone. The state is plain arrays; `decode(state)` gives the inner state in floats,
    and `encode(inner_state)` is the way back. `explain` notes which large slots are stored as they are.

    Dettmers, Lewis, Shleifer & Zettlemoyer 2021, arXiv:2110.02861 (blocks, 8 bits); Li, Chen & Zhu 2023,
    arXiv:2309.01507 (4 bits, no zero in second moments).

    >>> from functional_opt import adam
    >>> tx = quantize_state(adam(1e-3))
    >>> state = tx.init({"kernel": jnp.zeros((64, 256)), "bias": jnp.zeros(256)})
    >>> mu = state.inner_state[0].mu
    >>> mu["kernel"].dtype, state.scale[0]["kernel"].shape, mu["bias"].dtype, state.scale[0]["bias"]
    (dtype('int8'), (64, 1), dtype('float32'), None)

    Differs from the papers: codes are computed rather than looked up in a table; no rank-1 scales.
    """

    inner: Transformation
    bits: Static[Literal[8, 4]] = 8
    block_size: Static[PositiveInt | None] = None
    min_size: Static[Count] = 4096
    unsigned: Static[tuple[str, ...]] = ()
    signed: Static[tuple[str, ...]] = ()

    def init(self, params):
        state = self.inner.init(params)
        if isinstance(params, AllParams):  # a question where the slots are
            return QuantizeState(state, tuple(place.value for place in self._slots(state)))
        return self.encode(state)

    def update(self, updates, state, params=None, **extra):
        self._check(state)

        def pure(updates, state, params):
            updates, inner_state = self.inner.update(updates, self.decode(state), params, **extra)
            return updates, self._encode(inner_state, state.scale)

        return kernels.step(self, pure, updates, state, params)

    def as_kernel(self, state, params):
        links = kernels.operations_of(self.inner, state.inner_state, params)
        if links is None:
            return None
        coded = {
            id(place.value): kernels.CodedSlots(place.value, scale, partial(_as_slot, self.bits, _is_signed(place)))
            for place, scale in zip(self._slots(state.inner_state), state.scale, strict=True)
        }
        return tuple(k._replace(slots=tuple(coded.get(id(tree), tree) for tree in k.slots)) for k in links)

    def stored_with(self, inner):
        return dataclasses.replace(self, inner=inner)

    def uncoded(self, params: Tree) -> list[str]:
        """For `explain`: the slots with large leaves that are stored as they are, and why.

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
        """The state for `update`, of one of the inner transformation whose slots are floats.

        >>> from functional_opt import adam, tree
        >>> tx = quantize_state(adam(1e-3), min_size=0)
        >>> inner_state = tx.decode(tx.init({"w": jnp.zeros(4)}))
        >>> state = tx.encode(tree.set(inner_state, mu={"w": jnp.ones(4)}))
        >>> state.inner_state[0].mu["w"].tolist()
        [127, 127, 127, 127]
        """
        if isinstance(state, QuantizeState):
            raise TypeError(
                "encode needs the state of the inner transformation, got a QuantizeState, which has codes"
            )
        return self._encode(state, None)

    def decode(self, state: QuantizeState) -> Any:
        """The state of the inner transformation, in float32 where this one has codes.

        Raises ValueError, naming the leaf, for codes without their scale and for scales without their codes.
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
            return tree.unflatten([_decoded(path, x, scale, self.bits, signed) for path, x, scale in rows])

        return map_slots(floats, state.inner_state, self._named)

    def _encode(self, state: Any, before: Any) -> QuantizeState:
        """The state with codes: of the leaves that had codes before, if there is a before."""
        scales, old = [], iter(before or ())

        def stored(place):
            if not self._has_codes(place):
                return place.value
            _, leaves, tree = _leaves(place)
            chosen = (
                map(self._is_large, leaves)
                if before is None
                else [x is not None for x in tree.flatten_up_to(next(old))]
            )
            signed = _is_signed(place)
            pairs = [
                codes.encode(x, self.bits, self.block_size, signed) if yes else (x, None)
                for x, yes in zip(leaves, chosen, strict=True)
            ]
            scales.append(tree.unflatten([scale for _, scale in pairs]))
            return tree.unflatten([x for x, _ in pairs])

        return QuantizeState(map_slots(stored, state, self._named), tuple(scales))

    def _check(self, state: Any) -> None:
        if not isinstance(state, QuantizeState):
            received = f"a {type(state).__name__}; encode(state) makes one of a state of the inner transformation"
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

    def _is_large(self, x: Any) -> bool:
        return jnp.issubdtype(jnp.result_type(x), jnp.floating) and np.size(x) >= max(self.min_size, 1)


def _is_signed(place: SlotPlace) -> bool:
    return place.slot is not None and place.slot.kind == "signed"


def _leaves(place: SlotPlace) -> tuple[list[str], list, Any]:
    found, tree = jax.tree_util.tree_flatten_with_path(place.value)
    return [place.name + jax.tree_util.keystr(path) for path, _ in found], [x for _, x in found], tree


def _decoded(path: str, x: Any, scale: Any, bits: Literal[8, 4], signed: bool) -> Any:
    remedy = "take both from one state, or store floats with `encode`"
    if scale is None:
        if jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"{path} has codes ({x.dtype}) without their scale: {remedy}")
        return x
    if not hasattr(scale, "shape"):
        raise ValueError(f"{path} has a {type(scale).__name__} in place of its scale: {remedy}")
    try:
        return codes.decode(x, scale, bits, signed)
    except ValueError as e:
        raise ValueError(f"{path}: {e}; {remedy}") from e


def _as_slot(bits: int, signed: bool, x: Any, scale: Any) -> kernels.StoredSlot:
    """Describes a slot to the kernel, which cannot go through codes of 4 bits that are in the halves of a row."""
    if scale is None:
        return kernels.StoredSlot.plain(x)
    kind = "halves" if bits == 4 and codes.in_halves(scale) else f"{'' if signed else 'u'}int{bits}"
    return kernels.StoredSlot(x, kind, codes.shape_of(x, scale, bits, signed), scale)
