"""The arrays of params and states, each with what it means: its slot, and the path of the param it belongs to."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from ..core.leaves import Tree
from ..core.model_trees import is_box
from ..core.slots import declared
from ..placement.mesh import mesh_of, spec_of
from ..placement.shardings import state_types
from ..transforms.combining.nesting import walk
from ..transforms.precision.quantize import QuantizeState
from ..transforms.wrapping.shard import shard
from .stored import is_stored

Parts = tuple[str, ...]
ROOT = "."
"""The path of params that are a single array."""


class Entry(NamedTuple):
    """A leaf of params or of a state, described without the containers that hold it.

    `slot`: where the field stands in the state, such as `0/mu`; "" for a param. `field`: its name, such as `mu`.
    `rule`: the class of the state that has it, such as `ScaleByAdamState`; "" if there is none. `kind`: of the slot,
    if it is declared; otherwise "". `path`: of the param that it belongs to; None if it belongs to none. `part`:
    which part it is of what the slot keeps for that param; "" if the slot keeps one array. `value`: the leaf.
    """

    slot: str
    field: str
    rule: str
    kind: str
    path: str | None
    part: str
    value: Any

    @property
    def key(self) -> tuple[str, str | None, str]:
        """Returns what tells an entry from all others of a params tree and a state."""
        return self.slot, self.path, self.part

    def __str__(self):
        slot = f"#{self.slot}{self.part and '/' + self.part}" if self.slot else ""
        return f"{'' if self.path is None else self.path}{slot}"


class _Found(NamedTuple):
    """A leaf on the way to an entry: `above` are the parts up to the field, `below` the parts inside its value.

    If the field is not declared, all parts are in `above`; the first `fixed` of them end with it.
    """

    above: Parts
    below: Parts
    rule: str
    kind: str
    fixed: int
    value: Any


def paths_of(params: Tree) -> dict[Parts, str]:
    """Returns the path of every leaf by its parts. Keys with a `/` are escaped only where paths would collide.

    >>> list(paths_of({"a": [1.0, 2.0]}).values()), list(paths_of({"a/b": 1.0, "a": {"b": 2.0}}).values())
    (['a/0', 'a/1'], ['a/b', 'a%2Fb'])
    """
    parts = [found.below for found in _leaves(params, below=())]
    joined = {p: "/".join(p) or ROOT for p in parts}
    times = Counter(joined.values())
    return {p: name if times[name] == 1 else _joined(p) for p, name in joined.items()}


def entries_of_params(params: Tree) -> list[Entry]:
    """Returns the entries of the leaves in the order of `jax.tree.leaves`."""
    paths = paths_of(params)
    return [Entry("", "", "", "", paths[found.below], "", found.value) for found in _leaves(params, below=())]


def entries_of_state(state: Any, params: Tree) -> list[Entry]:
    """Returns the entries of the leaves in the order of `jax.tree.leaves`.

    >>> from functional_opt import adam
    >>> params = {"w": jax.numpy.ones(2)}
    >>> [str(entry) for entry in entries_of_state(adam(0.1).init(params), params)]
    ['#0/count', 'w#0/mu', 'w#0/nu']
    """
    paths, shape = _paths_and_shape(params)
    return [_entry(found, paths, shape) for found in _leaves(state)]


def entries_of_old_state(state: Any, params: Tree) -> list[Entry]:
    """Returns the entries of a state that was made for other params, whose paths are read from its moments."""
    paths, shape = _paths_and_shape(params)
    found = list(_leaves(state))
    for x in found:
        if x.kind in ("signed", "unsigned", "params") and x.below and not _longest(x.below, paths):
            if not (x.below[0].isdigit() and _longest(x.below[1:], paths)):
                paths[x.below] = "/".join(x.below)
    return [_entry(x, paths, shape) for x in found]


def _paths_and_shape(params: Tree) -> tuple[dict[Parts, str], Any]:
    """Returns the paths of the params by their parts, and the shape of the root if that is the only param."""
    paths = paths_of(params)
    return paths, jax.numpy.shape(jax.tree.leaves(params)[0]) if () in paths else None


def entries_of(params: Tree, state: Any) -> list[Entry]:
    """Returns the entries of all arrays, those of the params first. Raises TypeError for other leaves in a state."""
    entries = [entry for entry in entries_of_params(params) if is_stored(entry.value)]
    for entry in (slots := entries_of_state(state, params)):
        if not is_stored(entry.value):
            raise TypeError(f"the state's {entry} must be an array, got {entry.value!r:.80}")
    return entries + slots


def abstract_state(tx: Any, params: Tree) -> Any:
    """Returns the shapes and dtypes of `tx.init(params)`; leaves of the params that are not arrays count as None."""

    def abstract(x: Any) -> Any:
        if not is_stored(x):
            return None
        weak = getattr(x, "weak_type", False)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=weak) if hasattr(x, "shape") else x

    if any(isinstance(link, shard) for _, _, link, _ in walk(tx)) and (mesh := mesh_of(params)) is not None:
        specs = [spec_of(x) for x in jax.tree.leaves(params) if is_stored(x)]
        return jax.tree.map(abstract, state_types(tx.init, jax.tree.map(abstract, params), mesh, specs))
    return jax.eval_shape(tx.init, jax.tree.map(abstract, params))


def _leaves(
    node: Any, above: Parts = (), below: Parts | None = None, rule: str = "", kind: str = "", fixed: int = 1
) -> Iterator[_Found]:
    """Yields the leaves below a node; `below` is None as long as no declared field has been entered."""
    if jax.tree_util.all_leaves([node]):
        yield _Found(above, below or (), rule, kind, fixed, node)
        return
    slots = declared(type(node))
    children = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x: x is not node)
    in_box = is_box(node) and len(children) == 1
    for keys, child in children:
        part: Parts = () if in_box else tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)
        if below is not None:
            yield from _leaves(child, above, (*below, *part), rule, kind, fixed)
        elif not hasattr(type(node), "_fields"):
            yield from _leaves(child, (*above, *part), None, rule, "", fixed)
        else:
            slot, there = slots.get("".join(part)), (*above, *part)
            inside = None if slot is None or slot.kind == "states" else ()
            kind = "" if slot is None or inside is None else slot.kind
            yield from _leaves(child, there, inside, type(node).__name__, kind, len(there))


def _entry(found: _Found, paths: dict[Parts, str], root_shape: Any) -> Entry:
    above, below, rule, kind, fixed, value = found
    field = above[-1] if above else ""
    if not kind:  # not declared, such as another library's: its end may be the path of a param
        starts = (i for i in range(fixed, len(above)) if above[i:] in paths)
        start = next(starts, len(above))
        above, below = above[:start], above[start:]
        field = next((part for part in reversed(above) if not part.isdigit()), "state")
    elif rule == QuantizeState.__name__:  # a tuple of trees, one for each slot
        above, below = (*above, *below[:1]), below[1:]
    end = _longest(below, paths)
    if not end and below and below[0].isdigit() and (end := _longest(below[1:], paths)):  # a tree for each axis
        above, below = (*above, below[0]), below[1:]
    at_root = () in paths and kind not in ("counter", "key", "number") and jax.numpy.shape(value) == root_shape
    path = paths[below[:end]] if end or at_root else None
    return Entry(_joined(above) or "state", field, rule, kind, path, _joined(below[end:]), value)


def _longest(parts: Parts, paths: dict[Parts, str]) -> int:
    """Returns how many of the first parts are the path of a param; 0 if none are."""
    return next((i for i in range(len(parts), 0, -1) if parts[:i] in paths), 0)


def _joined(parts: Parts) -> str:
    return "/".join(part.replace("%", "%25").replace("/", "%2F") for part in parts)
