"""Packing: passes fewer arrays to an eager step, because JAX's overhead depends on their number, not their size.

The trees of a step are passed as lists, and small arrays of the state are joined, several in one array.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import core

from ..variables.variable import Variable
from .by_variable import ByVariable
from .step import Step

SMALL = 1 << 14
"""The largest number of elements in an array that is packed: copying more takes longer than passing it."""
TOGETHER = 8
"""The number of arrays in a pack; more would take longer to compile and save little."""
ENOUGH = 32
"""The least number of similar arrays that is worth packing."""


@dataclass(frozen=True)
class Packing:
    """The way the leaves of a tree are stored: packs of small ones first, then the others."""

    treedef: Any
    kinds: tuple[tuple[tuple[int, ...], Any], ...]  # shape and dtype of all leaves
    packs: tuple[tuple[int, ...], ...]  # the leaves in each pack
    others: tuple[int, ...]

    @staticmethod
    def of(leaves: Sequence[jax.Array], treedef: Any) -> "Packing":
        alike: dict[Any, list[int]] = {}
        for i, x in enumerate(leaves):
            if not isinstance(x, core.Tracer) and x.size <= SMALL and len(x.devices()) == 1:
                alike.setdefault((x.dtype, x.sharding), []).append(i)
        packs = [
            tuple(same[i : i + TOGETHER])
            for same in alike.values()
            if len(same) >= ENOUGH
            for i in range(0, len(same), TOGETHER)
        ]
        others = set(range(len(leaves))).difference(*packs)
        return Packing(treedef, _kinds(leaves), tuple(packs), tuple(sorted(others)))

    def packed(self, leaves: Sequence[jax.Array]) -> list[jax.Array]:
        """Returns new arrays for the packs, and the other leaves as they are."""
        return [*(_join([leaves[i] for i in pack]) for pack in self.packs), *(leaves[i] for i in self.others)]

    def unpacked(self, arrays: Sequence[jax.Array]) -> Any:
        """Returns the tree."""
        found = dict(zip(self.others, arrays[len(self.packs) :], strict=True))
        for pack, x in zip(self.packs, arrays, strict=False):
            shapes = tuple(self.kinds[i][0] for i in pack)
            found.update(zip(pack, _split(x, shapes), strict=True))
        return self.treedef.unflatten([found[i] for i in range(len(found))])

    def repacked(self, tree: Any) -> list[jax.Array]:
        """Returns the arrays for another tree. Raises TypeError unless it has the same structure."""
        leaves, treedef = jax.tree.flatten(tree)
        if treedef != self.treedef or _kinds(leaves) != self.kinds:
            raise TypeError(f"a step changed the structure of the state from {self.treedef} to {treedef}")
        return self.packed(leaves)


def _kinds(leaves: Sequence[Any]) -> tuple:
    return tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)


@jax.jit
def _join(arrays: list[jax.Array]) -> jax.Array:
    return jnp.concatenate([x.ravel() for x in arrays])


@functools.partial(jax.jit, static_argnums=1)
def _split(joined: jax.Array, shapes: tuple[tuple[int, ...], ...]) -> list[jax.Array]:
    ends = [*itertools.accumulate(map(math.prod, shapes))]
    return [part.reshape(shape) for part, shape in zip(jnp.split(joined, ends[:-1]), shapes, strict=True)]


@dataclass(frozen=True, eq=False)
class Layout:
    """Describes the lists of arrays; its hash is computed once."""

    keys: tuple[str, ...]  # of all variables that the state knows, in its order
    moving: tuple[str, ...]  # of those that have values and gradients
    state: Packing

    def __post_init__(self):
        object.__setattr__(self, "_hash", hash((self.keys, self.moving, self.state)))

    def __hash__(self):
        return self.__dict__["_hash"]

    def __eq__(self, other):
        parts = lambda layout: (layout.keys, layout.moving, layout.state)  # noqa: E731
        return self is other or isinstance(other, Layout) and parts(self) == parts(other)


@dataclass(frozen=True)
class Packed:
    """A step that takes values and packed state in one list, and returns them so, followed by the clock.

    The other variables' values and the gradients are lists, too.
    """

    step: Step
    layout: Layout

    def __call__(self, arrays, numbers, clock, idle, grads):
        keys, moving, packing = self.layout.keys, self.layout.moving, self.layout.state
        values, state = arrays[: len(moving)], arrays[len(moving) :]
        values, grads = ({key: None for key in keys} | dict(zip(moving, xs, strict=True)) for xs in (values, grads))
        idle = ByVariable(zip((key for key in keys if key not in moving), idle, strict=True))
        values, state, clock = self.step(
            numbers, ByVariable(values), packing.unpacked(state), clock, idle, ByVariable(grads)
        )
        return [*(values[key] for key in moving), *packing.repacked(state), clock]


class Group:
    """The variables of a step, in the order of the state, with data that the next step of the same ones reuses."""

    def __init__(self, known: dict[str, Variable], keys: dict[int, str], variables: Sequence[Variable]):
        self.ids, self.shapes = tuple(map(id, variables)), [v.shape for v in variables]
        place = {key: i for i, key in enumerate(known)}
        self.order = sorted(range(len(variables)), key=lambda i: place[keys[self.ids[i]]])
        self.variables = [variables[i] for i in self.order]
        self.keys, self.all_keys = tuple(keys[id(v)] for v in self.variables), tuple(place)
        moving = set(self.keys)
        self.idle = [v for key, v in known.items() if key not in moving]
        self.structure: Any = None  # of the transformation and its numbers at the last step
        self._layout: Layout | None = None

    def layout(self, packing: Packing) -> Layout:
        if self._layout is None or self._layout.state is not packing:
            if self._layout is None or self._layout.state != packing:
                self._layout = Layout(self.all_keys, self.keys, packing)
        return self._layout
