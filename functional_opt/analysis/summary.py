"""explain: what a transformation will do to params, as a table, before anything runs."""

import contextlib
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from ..core.leaves import Tree
from ..core.model_trees import names
from ..core.paths import AllParams, select_leaves
from ..core.transformation import GradientTransformation, Transformation
from ..core.value import checked
from ..transforms.combining.nesting import children, with_children
from .lint import Note, review

WIDTH = 118
COLUMNS = (("link", 42), ("what it does", 40), ("leaves", 9), ("state", 10), ("FLOPs", 9))


class Row(NamedTuple):
    """A link: where it stands in the transformation, and what it costs.

    `path`: as in `tx.transforms[0]`. `link`: the transformation. `what`: the first line of its docstring.
    `leaves`: the paths of the leaves it touches; `seen`: of those it is given. `state_bytes`: of its own
    state, without that of the links within it. `flops`: of one update with all that is within it; None where
    XLA does not say. `depth`: how many transformations it is in.
    """

    path: str
    link: GradientTransformation
    what: str
    leaves: tuple[str, ...]
    seen: tuple[str, ...]
    state_bytes: int
    flops: float | None
    depth: int


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `explain` found; it prints as a table.

    `rows`: the links, outer ones first. `leaves`: the paths of all params. `state_bytes`: of the whole state.
    `flops`: of one update, None where XLA does not say. `notes`: what is likely a mistake, or a hint.
    """

    rows: tuple[Row, ...]
    leaves: tuple[str, ...]
    state_bytes: int
    flops: float | None
    notes: tuple[Note, ...]

    def __str__(self):
        lines = [_line([name for name, _ in COLUMNS]), "-" * WIDTH]
        for row in self.rows:
            name = repr(row.link) if not children(row.link) else type(row.link).__name__
            leaves = "all" if len(row.leaves) == len(self.leaves) else f"{len(row.leaves)} of {len(self.leaves)}"
            cells = ["  " * row.depth + name, row.what, leaves, _bytes(row.state_bytes), _count(row.flops)]
            lines.append(_line(cells))
            if 0 < len(row.leaves) < len(self.leaves) and not children(row.link):
                lines.append(_cut("  " * row.depth + "    on " + ", ".join(row.leaves), WIDTH))
        total = f"in all, {len(self.leaves)} leaves", "", "", _bytes(self.state_bytes), _count(self.flops)
        lines += ["-" * WIDTH, _line(total), "FLOPs of one update, as XLA counts them before it optimizes."]
        for note in self.notes:
            lines += textwrap.wrap(f"{note.kind}: {note.message}", WIDTH, subsequent_indent="    ")
        return "\n".join(lines)

    __repr__ = __str__


@checked
def explain(tx: Transformation, params: Tree, steps: int | None = None) -> Explanation:
    """What a transformation will do to params: each link, the leaves it touches, its state, its cost, and doubts.

    Nothing is computed but schedules at some of the steps: `jax.eval_shape` says what the state takes, and XLA what
    an update costs.

    Args:
        tx: any transformation.
        params: the params, or anything of their shapes and dtypes (`jax.eval_shape` of what makes them).
        steps: how many updates there will be; with it, a schedule that ends before is noted.

    Returns an `Explanation`, which prints. Its notes are a "warning" for what is likely a mistake (weight decay with
    the wrong sign, a clip after Adam, no learning rate or two, a mask or a group without leaves, a schedule of
    zeros) and a "hint" for what may be one. Raises what `tx.init` raises, for path rules that match nothing, say.

    >>> from functional_opt import adam, add_decayed_weights, chain
    >>> params = {"w": np.zeros((8, 4), "float32"), "b": np.zeros(4, "float32")}
    >>> plan = explain(chain(adam(1e-3), add_decayed_weights(0.1)), params)
    >>> [(row.path, row.state_bytes) for row in plan.rows][1:3], plan.state_bytes
    ([('.transforms[0]', 0), ('.transforms[0].transforms[0]', 292)], 292)
    >>> print(plan.notes[0].kind, plan.notes[0].rule, plan.notes[0].path)
    warning decay_after_learning_rate .transforms[1]
    """
    shapes = shapes_of(params)
    state = jax.eval_shape(tx.init, shapes)
    rows = tuple(_rows(tx, shapes, "", 0))
    return Explanation(rows, names_of(shapes), size(state), _flops(tx, shapes), review(tx, rows, shapes, steps))


def size(tree: Tree) -> int:
    """The bytes of all arrays, or of what will be arrays."""
    leaves = [x for x in jax.tree.leaves(tree) if hasattr(x, "dtype")]
    is_key = lambda x: jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    leaves = [jax.eval_shape(jax.random.key_data, x) if is_key(x) else x for x in leaves]
    return sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in leaves)


def shapes_of(params: Tree) -> Tree:
    """The shapes and dtypes of the params; None for what is no number, as the functions of a whole model."""

    def leaf(x: Any) -> Any:
        if not hasattr(x, "dtype") and not isinstance(x, int | float | complex):
            return None
        return jax.ShapeDtypeStruct(np.shape(x), jax.numpy.result_type(x))

    return jax.tree.map(leaf, params)


def names_of(params: Tree) -> tuple[str, ...]:
    """The path of every leaf."""
    return tuple(names(params))


def _rows(
    tx: Any,
    params: Tree,
    path: str,
    depth: int,
    named: tuple[str, ...] | None = None,
    stored: Callable = lambda tx: tx,
) -> Iterator[Row]:
    """The rows of a transformation and of those within it.

    `named`: where its params are not leaves of the params. `stored`: makes of a transformation one whose state is as
    it is stored, where one around it, such as `quantize_state`, stores it otherwise.
    """
    tx = tx.resolved_for(params)
    touched = seen = names_of(params) if named is None else named
    inner = []
    for (step, child), given in zip(children(tx), given_to(tx, params), strict=True):
        like = named if named is not None or set(names_of(given)) <= set(seen) else seen
        inner.append(
            list(_rows(child, given, path + step, depth + 1, like, lambda child: stored(tx.stored_with(child))))
        )
    own = size(jax.eval_shape(stored(tx).init, params)) - sum(row.state_bytes for rows in inner for row in rows)
    if named is None and (chosen := tx.touched_leaves(params)) is not None:
        touched = names_of(select_leaves(chosen, params))
    if inner:
        there = {name for rows in inner for row in rows for name in row.leaves}
        touched = tuple(name for name in touched if name in there)
    what = (inspect.getdoc(type(tx)) or "").split("\n")[0]
    yield Row(path, tx, what, touched, seen, own, _flops(tx, params), depth)
    for rows in inner:
        yield from rows


def given_to(tx: Any, params: Tree) -> list[Tree]:
    """The params that `tx` gives to each transformation within it: some of them, or in other shapes."""
    given: list[Tree] = [params] * len(children(tx))
    places = iter(range(len(given)))

    def watched(child: GradientTransformation) -> GradientTransformation:
        i = next(places)

        def init(params):
            if not isinstance(params, AllParams):  # a question where the slots are
                given[i] = shapes_of(params)
            return child.init(params)

        return GradientTransformation(init, child.update)

    jax.eval_shape(with_children(tx, watched).init, params)
    return given


def _flops(tx: Any, params: Tree) -> float | None:
    """Of one update, by XLA's count, which is not there for what needs more arguments or a mesh."""
    with contextlib.suppress(Exception):
        state = jax.eval_shape(tx.init, params)
        cost: Any = jax.jit(tx.update).lower(params, state, params).cost_analysis()
        cost = cost[0] if isinstance(cost, list) else cost
        return float(cost.get("flops", 0.0))
    return None


def _line(cells: Any) -> str:
    parts = []
    for i, (cell, (_, width)) in enumerate(zip(cells, COLUMNS, strict=True)):
        parts.append(_cut(cell, width).ljust(width) if i < 2 else _cut(cell, width).rjust(width))
    return "  ".join(parts).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _bytes(n: int) -> str:
    if n < 10_000:
        return f"{n:,} B"
    power, unit = next(((p, u) for p, u in ((3, "kB"), (6, "MB")) if n < 10 ** (p + 4)), (9, "GB"))
    return f"{n / 10**power:,.1f} {unit}"


def _count(n: float | None) -> str:
    return "?" if n is None else f"{n:,.0f}" if n < 1e6 else f"{n:.2e}"
