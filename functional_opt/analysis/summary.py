"""explain: shows in a table what a transformation will do to params, before anything runs."""

import contextlib
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ..core.checks import checked
from ..core.leaves import Tree
from ..core.model_trees import names
from ..core.paths import AllParams, select_leaves
from ..core.transformation import GradientTransformation, Transformation
from ..native.switch import disabled
from ..placement.mesh import AnyMesh, all_explicit, mesh_of, spec_of
from ..placement.shardings import is_numeric
from ..transforms.combining.nesting import children, with_children
from .html import paragraphs, table
from .lint import Note, review
from .placed import Placed, as_bytes
from .sparkline import lines_of

WIDTH = 118
COLUMNS = (("link", 42), ("what it does", 40), ("leaves", 9), ("state", 10), ("FLOPs", 9))

COUNTED = "FLOPs of one update, as XLA counts them before it optimizes."


class Row(NamedTuple):
    """A link: its place in the transformation, and its cost.

    `path`: as in `tx.transforms[0]`. `link`: the transformation. `what`: the first line of its docstring.
    `leaves`: the paths of the leaves it changes. `seen`: the paths of the leaves it is given. `state_bytes`: the size
    of its own state, without that of the links inside it. `flops`: the cost of one update, including the links inside
    it; None if XLA does not report it. `depth`: the number of transformations around it.
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
    """The result of `explain`; it prints as a table.

    `rows`: the links, outer ones first. `leaves`: the paths of all params. `state_bytes`: the size of the entire
    state. `flops`: the cost of one update; None if XLA does not report it. `notes`: likely mistakes, and hints.
    `placed`: the cost on each device, if the params lie on several. `steps`: the number of updates planned.
    """

    rows: tuple[Row, ...]
    leaves: tuple[str, ...]
    state_bytes: int
    flops: float | None
    notes: tuple[Note, ...]
    placed: Placed | None = None
    steps: int | None = None

    def __str__(self):
        lines = [_line([name for name, _ in COLUMNS]), "-" * WIDTH]
        for row in self.rows:
            lines.append(_line(self._cells(row)))
            lines += [_cut("  " * row.depth + "    " + more, WIDTH) for more in self._more(row)]
        lines += ["-" * WIDTH, _line(self._total()), COUNTED]
        if self.placed is not None:
            lines.append(str(self.placed))
        for note in self.notes:
            lines += textwrap.wrap(f"{note.kind}: {note.message}", WIDTH, subsequent_indent="    ")
        return "\n".join(lines)

    def _cells(self, row: Row) -> tuple[str, ...]:
        name = repr(row.link) if not children(row.link) else type(row.link).__name__
        leaves = "all" if len(row.leaves) == len(self.leaves) else f"{len(row.leaves)} of {len(self.leaves)}"
        return "  " * row.depth + name, row.what, leaves, as_bytes(row.state_bytes), _count(row.flops)

    def _more(self, row: Row) -> list[str]:
        """Returns the lines below a link: its schedules, and its leaves if they are some."""
        some = 0 < len(row.leaves) < len(self.leaves) and not children(row.link)
        return [*lines_of(row.link, self.steps), *(["on " + ", ".join(row.leaves)] if some else [])]

    def _total(self) -> tuple[str, ...]:
        return f"in all, {len(self.leaves)} leaves", "", "", as_bytes(self.state_bytes), _count(self.flops)

    def _repr_html_(self) -> str:
        """Returns the table for a notebook."""
        rows = []
        for row in self.rows:
            name, *others = self._cells(row)
            rows.append(["\n".join([name, *self._more(row)]), *others])
        below = [COUNTED, *([str(self.placed)] if self.placed is not None else [])]
        below += [f"{note.kind}: {note.message}" for note in self.notes]
        return table([name for name, _ in COLUMNS], rows, self._total()) + paragraphs(below)

    __repr__ = __str__


@checked
def explain(tx: Transformation, params: Tree, steps: int | None = None, mesh: Mesh | None = None) -> Explanation:
    """Shows what a transformation will do to params: each link, the leaves it changes, its state and cost, and notes.

    Nothing is computed except schedules at some of the steps: `jax.eval_shape` gives the size of the state, and XLA
    the cost of an update.

    Args:
        tx: any transformation.
        params: the params, or anything with their shapes and dtypes (`jax.eval_shape` of what makes them).
        steps: the number of updates planned; if given, a schedule that ends earlier gets a note.
        mesh: the mesh of devices that the params lie on; only needed if the params themselves do not tell. On several
            devices the result also has the bytes of state on each, and those that an update sends between them, for
            which XLA compiles it; and a warning for state that lies whole on every device.

    Returns a printable `Explanation`. Its notes are a "warning" for a likely mistake (weight decay with the wrong
    sign, a clip after Adam, no learning rate or two, a mask or group without leaves, a schedule of zeros, an
    average that is not last) and a "hint" for a possible one. Raises whatever `tx.init` raises, for example if path
    rules match nothing.

    >>> from functional_opt import adam, add_decayed_weights, chain
    >>> params = {"w": np.zeros((8, 4), "float32"), "b": np.zeros(4, "float32")}
    >>> plan = explain(chain(adam(1e-3), add_decayed_weights(0.1)), params)
    >>> [(row.path, row.state_bytes) for row in plan.rows][1:3], plan.state_bytes
    ([('.transforms[0]', 0), ('.transforms[0].transforms[0]', 292)], 292)
    >>> print(plan.notes[0].kind, plan.notes[0].rule, plan.notes[0].path)
    warning decay_after_learning_rate .transforms[1]
    """
    devices = mesh_of(params) if mesh is None else mesh
    placed = None if devices is None or devices.size == 1 else Placed.of(tx, params, devices)
    with types_on(devices):
        shapes = shapes_of(params, devices)
        state = jax.eval_shape(tx.init, shapes)
        rows = tuple(_rows(tx, shapes, "", 0))
        notes = review(tx, rows, shapes, steps)
    notes = notes if placed is None else (*placed.notes(), *notes)
    flops = _flops(tx, shapes_of(params))
    return Explanation(rows, names_of(shapes), size(state), flops, notes, placed, steps)


def size(tree: Tree) -> int:
    """Returns the size in bytes of all arrays, or of the arrays that shapes describe."""
    leaves = [x for x in jax.tree.leaves(tree) if hasattr(x, "dtype")]
    is_key = lambda x: jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    leaves = [jax.eval_shape(jax.random.key_data, x) if is_key(x) else x for x in leaves]
    return sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in leaves)


def shapes_of(params: Tree, mesh: AnyMesh | None = None) -> Tree:
    """Returns the shapes and dtypes of the params; None for a leaf that is not numeric, such as a function.

    With a mesh, they say in their types where the params lie on it.
    """
    typed = None if mesh is None else all_explicit(mesh)

    def leaf(x: Any) -> Any:
        if not is_numeric(x):
            return None
        place = None if typed is None else NamedSharding(typed, spec_of(x))
        return jax.ShapeDtypeStruct(np.shape(x), jax.numpy.result_type(x), sharding=place)

    return jax.tree.map(leaf, params)


def types_on(mesh: AnyMesh | None) -> contextlib.AbstractContextManager:
    """Returns a context in which types say where arrays lie on a mesh, if there is one."""
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(all_explicit(mesh))


def names_of(params: Tree) -> tuple[str, ...]:
    """Returns the path of every leaf."""
    return tuple(names(params))


def _rows(
    tx: Any,
    params: Tree,
    path: str,
    depth: int,
    named: tuple[str, ...] | None = None,
    stored: Callable = lambda tx: tx,
) -> Iterator[Row]:
    """Yields the rows of a transformation and of those inside it.

    `named`: the paths to use if it gets other leaves than the params. `stored`: returns a variant of a transformation
    whose state has the form in which an outer transformation, such as `quantize_state`, stores it.
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
    """Returns the params that `tx` gives to each transformation inside it, which may be some, or in other shapes."""
    given: list[Tree] = [params] * len(children(tx))
    places = iter(range(len(given)))

    def watched(child: GradientTransformation) -> GradientTransformation:
        i = next(places)

        def init(params):
            if not isinstance(params, AllParams):  # with `AllParams`, `init` only locates the slots
                given[i] = shapes_of(params, mesh_of(params))
            return child.init(params)

        return GradientTransformation(init, child.update)

    jax.eval_shape(with_children(tx, watched).init, params)
    return given


def _flops(tx: Any, params: Tree) -> float | None:
    """Returns XLA's count for one update on one device; None if `update` needs more arguments or a mesh."""
    with contextlib.suppress(Exception):
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        # XLA does not count the work of kernels
        with disabled(), jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            return _counted(tx, params)
    return None


def _counted(tx: Any, params: Tree) -> float:
    state = jax.eval_shape(tx.init, params)
    cost: Any = jax.jit(tx.update).lower(params, state, params).cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return float(cost.get("flops", 0.0))


def _line(cells: Any) -> str:
    parts = []
    for i, (cell, (_, width)) in enumerate(zip(cells, COLUMNS, strict=True)):
        parts.append(_cut(cell, width).ljust(width) if i < 2 else _cut(cell, width).rjust(width))
    return "  ".join(parts).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _count(n: float | None) -> str:
    return "?" if n is None else f"{n:,.0f}" if n < 1e6 else f"{n:.2e}"
