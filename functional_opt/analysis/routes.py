"""describe: shows in a table which leaf goes to which optimizer, and why."""

import dataclasses
import textwrap
from typing import Any, NamedTuple

import jax

from ..core.checks import checked
from ..core.leaves import Tree, is_nothing
from ..core.model_trees import named_leaves
from ..core.paths import (
    Frozen,
    LeafSelector,
    PathRules,
    broadcast_prefix,
    matches,
    resolve_labels,
    resolve_mask,
    select_leaves,
)
from ..core.transformation import GradientTransformation, Transformation
from ..core.value import show
from ..optimizers.scion import scale_by_scion
from ..placement.mesh import mesh_of
from ..transforms.combining.nesting import children
from ..transforms.combining.select import masked, partition, selective_transform, set_to_zero
from ..transforms.matrices.routing import leaf_roles
from ..transforms.scaling.decay import add_decayed_weights
from .html import paragraphs, table
from .sparkline import lines_of
from .summary import WIDTH, given_to, names_of, shapes_of, types_on

HEADS = ("leaf", "shape", "goes to", "why")


class Route(NamedTuple):
    """The route of a leaf: its `path`, its `shape`, and the `labels` that partitions give it, outer ones first.

    `links`: the transformations that see it, in order; none for a leaf whose updates stay as they are. `why`: what
    decided at each partition or mask, such as a path rule, a mask or a function.
    """

    path: str
    shape: tuple[int, ...]
    labels: tuple[str, ...]
    links: tuple[GradientTransformation, ...]
    why: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Description:
    """The result of `describe`; it prints as a table. `routes`: one for each leaf of the params.

    `notes`: doubts, such as about a leaf that may be a matrix, each with a way to resolve it.
    """

    routes: tuple[Route, ...]
    notes: tuple[str, ...] = ()

    def __str__(self):
        cells = [HEADS, *self._cells()]
        widths = [max(len(row[i]) for row in cells) for i in range(4)]
        lines = [_cut("  ".join(c.ljust(n) for c, n in zip(row, widths, strict=True)).rstrip()) for row in cells]
        lines.insert(1, "-" * min(WIDTH, sum(widths) + 6))
        for line, *schedules in self._ways():
            lines += textwrap.wrap(line, WIDTH, subsequent_indent="    ")
            lines += [_cut("    " + schedule) for schedule in schedules]
        for note in self.notes:
            lines += textwrap.wrap(f"warning: {note}", WIDTH, subsequent_indent="    ", break_long_words=False)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Returns the table for a notebook."""
        below = [line for way in self._ways() for line in way]
        return table(HEADS, self._cells()) + paragraphs([*below, *(f"warning: {note}" for note in self.notes)])

    def _cells(self) -> list[tuple[str, ...]]:
        names = self._names()
        return [(r.path, str(r.shape), names[_way(r)], "; ".join(r.why)) for r in self.routes]

    def _ways(self) -> list[list[str]]:
        """Returns, for each way that leaves go, a line with its links and one for each of their schedules."""
        ways, names = [], self._names()
        for route in {_way(r): r for r in self.routes}.values():
            steps = " → ".join(map(repr, route.links)) or "its updates stay as they are"
            schedules = [line for link in route.links for line in lines_of(link)]
            ways.append([f"{names[_way(route)]}: {steps}", *dict.fromkeys(schedules)])
        return ways

    def _names(self) -> dict[tuple, str]:
        """Returns a name for each way that leaves go: the labels on it, with a number where several have the same."""
        ways = dict.fromkeys(map(_way, self.routes))
        names: dict[tuple, str] = {}
        for labels, links in ways:
            name = ", ".join(labels) or ("unchanged" if not links else "all" if len(ways) == 1 else "chosen")
            same = sum(other.split(" (")[0] == name for other in names.values())
            names[labels, links] = f"{name} ({same + 1})" if same else name
        return names

    __repr__ = __str__


def _way(route: Route) -> tuple:
    return route.labels, tuple(map(repr, route.links))


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


@checked
def describe(tx: Transformation, params: Tree) -> Description:
    """Shows which leaf goes to which optimizer, and why, for `muon` and the like, `partition`, `masked` and `groups`.

    These may be nested. Nothing is computed: the params may be shapes and dtypes (`jax.eval_shape` of the function
    that makes them). For what links do, store and cost, see `explain`.

    Args:
        tx: any transformation.
        params: the params, or anything with their shapes and dtypes.

    Returns a printable `Description`. Raises whatever `tx.init` raises, for example if path rules match nothing.

    >>> import jax.numpy as jnp
    >>> from functional_opt import muon
    >>> params = {"embed": jnp.ones((9, 4)), "layer": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
    >>> print(describe(muon(0.02), params))  # doctest: +ELLIPSIS
    leaf          shape   goes to  why
    --------------------------------------------------------------
    embed         (9, 4)  adam     embedding: path '*[eE]mbed*/**'
    layer/bias    (4,)    adam     vector: 1-d
    layer/kernel  (4, 4)  muon     matrix: 2-d
    adam: scale_by_adam(nesterov=True) → ...
    muon: scale_by_muon() → scale_by_shape() → add_decayed_weights() → scale_by_learning_rate(0.02)
    """
    mesh = mesh_of(params)
    params = shapes_of(params, mesh)
    leaves = dict(zip(names_of(params), jax.tree.leaves(params), strict=True))
    routes = {name: Route(name, x.shape, (), (), ()) for name, x in leaves.items()}
    notes: list[str] = []
    with types_on(mesh):
        _follow(tx, params, tuple(leaves), routes, notes)
    return Description(tuple(routes.values()), tuple(dict.fromkeys(notes)))


def _follow(tx: Any, params: Tree, seen: tuple[str, ...], routes: dict[str, Route], notes: list[str]) -> None:
    """Adds a transformation, or those inside it, to the routes of the leaves that it sees."""

    def note(name: str, **more: Any) -> None:
        old = routes[name]
        new = {key: tuple(dict.fromkeys([*getattr(old, key), x])) for key, x in more.items() if x is not None}
        routes[name] = old._replace(**new)

    inner = children(tx)
    whole = set(names_of(params)) == set(seen)  # False if an inner transformation sees other params
    if whole:
        notes += _doubts(tx, params)
    if whole and isinstance(tx, partition):
        labels = broadcast_prefix(resolve_labels(tx.param_labels, params), params)
        labels = _by_leaf(jax.tree.leaves(labels, is_leaf=is_nothing), params)
        for name, why in _reasons(tx.param_labels, params, "labels").items():
            note(name, labels=str(labels[name]), why=why)
        notes += _doubts(tx.param_labels, params)
    if whole and isinstance(tx, scale_by_scion):
        reasons = [place.why for place in leaf_roles(params)]
        why = _by_leaf(reasons, params) if tx.norms is None else _reasons(tx.norms, params, "norms")
        for name, norm in _by_leaf(tx.norm_of_each(params), params).items():
            note(name, labels=norm, why=why[name])
    kind = {masked: "mask", add_decayed_weights: "mask", selective_transform: "freeze_mask"}.get(type(tx))
    mask = None if kind is None else getattr(tx, kind)
    if whole and mask is not None:
        for name, why in _reasons(mask, params, kind).items():
            note(name, why=why)
    if not inner:
        if whole and mask is not None:
            seen = names_of(select_leaves(resolve_mask(mask, params), params))
        for name in seen:
            routes[name] = routes[name]._replace(links=(*routes[name].links, tx))
    for (_, child), given in zip(inner, given_to(tx, params), strict=True):
        own = names_of(given)
        if isinstance(tx, selective_transform):
            for name in set(seen) - set(own):
                routes[name] = routes[name]._replace(links=(*routes[name].links, set_to_zero()))
        _follow(child, given, own if set(own) <= set(seen) else seen, routes, notes)


def _by_leaf(values: list, params: Tree) -> dict[str, Any]:
    """Returns values in leaf order (None counts as a leaf) by path, without those of None."""
    both = zip(named_leaves(params, is_nothing), values, strict=True)
    return {name: x for (name, leaf), x in both if not is_nothing(leaf)}


def _doubts(rules: Any, params: Tree) -> list[str]:
    """Returns the doubts of labels, or of a rule with norms by role; leaves with the same doubt share one."""
    if not isinstance(rules, LeafSelector | GradientTransformation) or not (said := rules.doubts(params)):
        return []
    shapes = _by_leaf(jax.tree.leaves(params, is_leaf=is_nothing), params)
    by_doubt: dict[str, list[str]] = {}
    for name, doubt in _by_leaf(said, params).items():
        if doubt:
            by_doubt.setdefault(doubt, []).append(name)
    found = []
    for doubt, some in by_doubt.items():
        listed = ", ".join(f"{name} {shapes[name].shape}" for name in some)
        found.append(f"{listed}: {doubt.replace('PATH', some[0])}")
    return found


def _reasons(selection: Any, params: Tree, what: str | None) -> dict[str, str]:
    """Returns, for each leaf by path, the part of a mask or of labels that decides on it."""
    names = names_of(params)
    if isinstance(selection, LeafSelector):
        return _by_leaf(selection.reasons(params), params)
    if isinstance(selection, PathRules):
        hits = {n: next((pattern for pattern, _ in selection.rules if matches(pattern, n)), None) for n in names}
        return {name: f"{what}: no rule" if hit is None else f"{what}: rule {hit!r}" for name, hit in hits.items()}
    if isinstance(selection, Frozen):
        return dict.fromkeys(names, f"{what}: a tree" if len(selection.leaves) > 1 else f"{what}: one for all")
    return dict.fromkeys(names, f"{what}: {show(selection)}")
