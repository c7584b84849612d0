"""States of `quantize_state` in floats, and back in codes."""

from typing import Any, NamedTuple

import jax

from ..core.slots import States
from ..transforms.combining.nesting import walk
from ..transforms.precision.quantize import QuantizeState, quantize_state


class Decoded(NamedTuple):
    """Takes the place of a `QuantizeState`. `inner_state`: the inner state, in floats."""

    inner_state: States


def decoded(tx: Any, state: Any) -> Any:
    """Returns the state with floats in place of codes."""
    owners = _owners(tx, state)

    def floats(x: Any) -> Any:
        return Decoded(owners[id(x)].decode(x)) if id(x) in owners else x

    return jax.tree.map(floats, state, is_leaf=lambda x: isinstance(x, QuantizeState))


def encoded(tx: Any, state: Any, like: Any) -> Any:
    """Returns a state as `decoded(tx, like)` has it, with codes where `like`, a state of `tx`, has them."""
    owners = _owners(tx, like)
    nodes = jax.tree.leaves(like, is_leaf=lambda x: isinstance(x, QuantizeState))
    rest = iter([owners[id(x)] for x in nodes if id(x) in owners])

    def codes(x: Any) -> Any:
        return next(rest).encode(x.inner_state) if isinstance(x, Decoded) else x

    return jax.tree.map(codes, state, is_leaf=lambda x: isinstance(x, Decoded))


def stored_dtypes(state: Any) -> list[Any]:
    """Returns the dtypes in which the leaves of `decoded(tx, state)` are stored."""

    def inner(x: Any) -> Any:
        return x.inner_state if isinstance(x, QuantizeState) else x

    inside = jax.tree.map(inner, state, is_leaf=lambda x: isinstance(x, QuantizeState))
    return [getattr(x, "dtype", None) for x in jax.tree.leaves(inside)]


def _owners(tx: Any, state: Any) -> dict[int, quantize_state]:
    """Returns, by the id of each `QuantizeState`, the transformation that made it."""
    return {
        id(own): link
        for _, _, link, own in walk(tx, state)
        if isinstance(link, quantize_state) and isinstance(own, QuantizeState)
    }
