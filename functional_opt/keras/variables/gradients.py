"""Differentiates code with respect to the variables it reads, or to their rows if it reads only rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import core

from . import recording
from .indexed_slices import IndexedSlices
from .variable import Variable

Shapes = tuple[tuple[int, ...], ...]
"""The shape of the indices of each `sparse_read` of a variable."""


class Forward(NamedTuple):
    """The result of running a loss: its output, its reads and assignments, and a function for its gradients."""

    out: Any
    reads: dict[int, Variable]
    shapes: dict[int, Shapes]
    """Only for variables that were read by row and in no other way."""
    written: list[tuple[Variable, jax.Array]]
    """The variables that the loss assigned to, with the values assigned."""
    gradients: Callable[..., list[Any]]
    """Takes a cotangent (ones if None); returns a gradient for each variable, None if it was not read."""


def forward(
    fn: Callable,
    args: Sequence[Any],
    trained: Sequence[Variable],
    values: Sequence[Any],
    shapes: Mapping[int, Shapes],
    others: Sequence[Variable] = (),
    other_values: Sequence[Any] = (),
    loss_of: Callable[[Any], Any] = lambda out: out,
) -> Forward:
    """Runs `fn(*args)` once, ready to be differentiated with respect to `trained`.

    Assumes that variables in `shapes` are read only by `sparse_read`, with indices of these shapes, and makes no
    array of their size. If the shapes in the result differ, do not use its gradients.

    Args:
        values: the values of `trained`. While `fn` runs, `others` hold `other_values`.
        loss_of: a function that takes the result of `fn` and returns the loss.
    """
    shapes = {id(v): shapes[id(v)] for v in trained if id(v) in shapes and jnp.issubdtype(v.dtype, jnp.inexact)}
    whole = [v for v in trained if id(v) not in shapes]
    given = {id(v): x for v, x in zip(trained, values, strict=True)}
    zeros = {
        id(v): [jnp.zeros((*n, *v.shape[1:]), v.dtype) for n in shapes[id(v)]] for v in trained if id(v) in shapes
    }
    seen: dict[str, Any] = {}

    def of(whole_values, steps):
        here = given | {id(v): x for v, x in zip(whole, whole_values, strict=True)}
        inputs = [*(here[id(v)] for v in trained), *other_values]
        done = recording.call(fn, [*trained, *others], inputs, *args, steps=steps)
        loss = loss_of(done.out)
        check_loss(loss)
        seen.update(reads=done.reads, shapes={i: tuple(r.shape for r in rows) for i, rows in done.rows.items()})
        seen.update(written=[v for v, _ in done.written.values()])
        return jnp.asarray(loss), (done.out, done.rows, [x for _, x in done.written.values()])

    loss, vjp, (out, rows, written) = jax.vjp(of, [given[id(v)] for v in whole], zeros, has_aux=True)

    def gradients(cotangent: Any = None) -> list[Any]:
        ones = jnp.ones_like(loss)
        cotangent = ones if cotangent is None else jnp.broadcast_to(jnp.asarray(cotangent, loss.dtype), loss.shape)
        by_whole, by_rows = vjp(cotangent)
        found = {id(v): g for v, g in zip(whole, by_whole, strict=True) if g.dtype != jax.dtypes.float0}
        for v in trained:
            if id(v) in by_rows and id(v) in rows:  # it may be read in another way than last time
                found[id(v)] = _slices(v, rows[id(v)], by_rows[id(v)])
        return [found.get(id(v)) if id(v) in seen["reads"] or v._unwatched else None for v in trained]

    assigned = list(zip(seen["written"], written, strict=True))
    return Forward(out, seen["reads"], seen["shapes"], assigned, gradients)


def _slices(v: Variable, indices: Sequence[jax.Array], values: Sequence[jax.Array]) -> IndexedSlices:
    rows = [jnp.where(i < 0, i + v.shape[0], i).ravel() for i in indices]
    flat = [x.reshape(-1, *v.shape[1:]) for x in values]
    return IndexedSlices(jnp.concatenate(flat), jnp.concatenate(rows), v.shape)


def check_made_before(variables: Iterable[Variable]) -> None:
    """Raises RuntimeError for variables made while the loss was traced: they hold tracers, useless afterwards."""
    for v in variables:
        if isinstance(v._value, core.Tracer):
            raise RuntimeError(
                f"{v.name} was made in the loss; make it before, or call the loss once before the step"
            )


def check_not_trained(written: Iterable[Variable], trained: Sequence[Variable]) -> None:
    """Raises ValueError if the loss assigns to a variable that is being trained."""
    if both := [v.name for v in written if any(v is t for t in trained)]:
        raise ValueError(f"the loss assigns to {both}, which are being trained; assign to them after the step")


def check_loss(loss: Any) -> None:
    """Raises TypeError unless the loss is an array of floats."""
    if not hasattr(loss, "dtype") or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(f"the loss must be an array of floats, got {loss!r}")
