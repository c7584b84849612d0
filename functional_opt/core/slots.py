"""Slots: declarations of what each field of a state holds.

The annotation of a field declares its slot::

    class ScaleByAdamState(NamedTuple):
        count: Counter
        mu: Signed
        nu: Unsigned

`slots_of` and `map_slots` find the declared fields of any state: in chains, under masks, in wrappers. They report
leaves without a declaration, such as those of another library's state, with slot None.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import jax

from .leaves import Tree

Kind = Literal["signed", "unsigned", "params", "exact", "counter", "number", "key", "states"]


@dataclasses.dataclass(frozen=True)
class Slot:
    """Declares what a field of a state holds.

    Args:
        kind: one of

            - "signed": means, sums or differences of gradients or updates, with at most one element per element of
              a param;
            - "unsigned": the same for values that are never negative, such as second moments that divide the updates;
            - "params": a copy or an average of params, or an addition to them; rounding it would change the params;
            - "exact": other arrays that must not be rounded: bases, preconditioners, sums over a few steps;
            - "counter": integers that count steps;
            - "number": rates, norms, metrics and flags, a few per optimizer or per leaf;
            - "key": a key of `jax.random`, or its data;
            - "states": states of other transformations, which declare their own slots.
        bits: the fewest bits in which an element may be stored. `quantize_state` quantizes the slots that allow its
            number of bits, and `state_dtype` casts those that allow 16.

    >>> Slot("unsigned", bits=4)
    Slot(kind='unsigned', bits=4)
    >>> Slot("velocity")
    Traceback (most recent call last):
    ValueError: kind must be one of signed, unsigned, params, exact, counter, number, key, states, got 'velocity'
    """

    kind: Kind
    bits: int = 32

    def __post_init__(self):
        if self.kind not in typing.get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(typing.get_args(Kind))}, got {self.kind!r}")


SIGNED, UNSIGNED = Slot("signed", bits=4), Slot("unsigned", bits=4)

Signed = Annotated[Tree, SIGNED]
Unsigned = Annotated[Tree, UNSIGNED]
Signed16 = Annotated[Tree, Slot("signed", bits=16)]
Unsigned16 = Annotated[Tree, Slot("unsigned", bits=16)]
Exact16 = Annotated[Tree, Slot("exact", bits=16)]
"""For slots that must not be quantized: two whose difference is taken, sums that determine the params, and bases."""
Params = Annotated[Tree, Slot("params")]
Exact = Annotated[Tree, Slot("exact")]
Counter = Annotated[Any, Slot("counter")]
Number = Annotated[Any, Slot("number")]
RandomKey = Annotated[Any, Slot("key")]
States = Annotated[Any, Slot("states")]


@functools.cache
def declared(cls: type) -> dict[str, Slot]:
    """Returns the declarations of a state class, by field; empty if it has none.

    >>> from functional_opt import ScaleByAdamState
    >>> {name: slot.kind for name, slot in declared(ScaleByAdamState).items()}
    {'count': 'counter', 'mu': 'signed', 'nu': 'unsigned'}
    """
    if not hasattr(cls, "_fields"):
        return {}
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError):  # annotations that only a type checker can read
        return {}
    found = {
        name: [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Slot)] for name, hint in hints.items()
    }
    return {name: slots[0] for name, slots in found.items() if slots}


class SlotPlace(typing.NamedTuple):
    """A part of a state: its `path` as JAX keys, its `slot` (None if it is not declared) and its `value`."""

    path: tuple[Any, ...]
    slot: Slot | None
    value: Any

    @property
    def name(self) -> str:
        """Returns the path as a string, such as `[0].mu`."""
        return jax.tree_util.keystr(self.path)


def slots_of(state: Any, named: Mapping[str, Slot] = {}) -> Iterator[SlotPlace]:  # noqa: B006, it is not changed
    """Iterates over the declared fields of a state and the leaves that no declaration covers, in leaf order.

    Args:
        state: any state.
        named: slots by name, for the fields and keys of containers that declare nothing.

    >>> from functional_opt import adam
    >>> [(place.name, place.slot.kind) for place in slots_of(adam(0.1).init({"w": 0.0}))]
    [('[0].count', 'counter'), ('[0].mu', 'signed'), ('[0].nu', 'unsigned')]
    """
    found: list[SlotPlace] = []
    map_slots(found.append, state, named)
    return iter(found)


def map_slots(fn: Callable[[SlotPlace], Any], state: Any, named: Mapping[str, Slot] = {}) -> Any:  # noqa: B006, likewise
    """Returns the state with `fn(place)` for each declared field and for each leaf that no declaration covers.

    >>> from functional_opt import adam
    >>> map_slots(lambda place: place.slot.kind, adam(0.1).init({"w": 0.0}))[0]
    ScaleByAdamState(count='counter', mu='signed', nu='unsigned')
    """
    return _map(fn, state, named, ())


def _map(fn: Callable[[SlotPlace], Any], node: Any, named: Mapping[str, Slot], path: tuple) -> Any:
    if jax.tree_util.all_leaves([node]):
        return fn(SlotPlace(path, None, node))
    below, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    slots, results = declared(type(node)) or named, []
    for keys, x in below:
        slot, there = slots.get(getattr(keys[0], "name", getattr(keys[0], "key", ""))), (*path, *keys)
        inner = slot is None or slot.kind == "states"
        results.append(_map(fn, x, named, there) if inner else fn(SlotPlace(there, slot, x)))
    return treedef.unflatten(results)
