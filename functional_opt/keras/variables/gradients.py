"""Differentiates code with respect to the variables it reads, or to their rows if it reads only rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import recording
from .foreign import all_ours, is_variable
from .indexed_slices import IndexedSlices
from .variable import Variable, trainable_variables

Shapes = tuple[tuple[int, ...], ...]
"""The shape of the indices of each `sparse_read` of a variable."""


class Differentiated(NamedTuple):
    """The output of a loss, its gradients by variable (None for one that was not read), and what it assigned."""

    out: Any
    grads: list[Any]
    variables: list[Variable]
    written: list[tuple[Any, Any]]


def differentiate(
    loss: Callable[[], Any],
    var_list: Any,
    cotangent: Any = None,
    *,
    loss_of: Callable[[Any], Any] = lambda out: out,
    value_of: Callable[[Variable], jax.Array] = lambda v: v._value,
) -> Differentiated:
    """Runs a loss and differentiates it, once as a rule, and again if it reads what was not expected.

    Args:
        var_list: variables in any nesting, a function that returns them, called after the loss, or None for the
            trainable variables that the loss reads.
        cotangent: of the loss, of its shape; ones if None.
        loss_of: takes the result of `loss` and returns the number to differentiate.
        value_of: returns the value of a variable to differentiate with respect to.
    """
    check_callable(loss)
    named = None if var_list is None or callable(var_list) and not is_variable(var_list) else resolve(var_list, {})
    if (program := recording.program()) is None:
        tried = trainable_variables() if named is None else named
    else:  # all that a program touches becomes its input: it runs the loss once without derivatives, to find that out
        program.differentiated += 1
        place = "differentiated", program.differentiated
        if program.discovers or place not in program.memo:
            done = _discovered(loss, var_list, loss_of)
            program.memo[place] = done.variables
            if program.discovers:
                return done
        tried = program.memo[place]
    for _ in range(3):  # running the loss shows which variables it reads, and which by row
        shapes = {id(v): v._row_shapes for v in tried if v._row_shapes}
        done = forward(loss, tried, [value_of(v) for v in tried], shapes, loss_of)
        variables = resolve(var_list, done.reads) if named is None else named
        for v in variables:
            v._row_shapes = done.shapes.get(id(v), ())
        there = {id(v) for v in tried}
        if all(id(v) in there and v._row_shapes == shapes.get(id(v), ()) for v in variables):
            break
        tried = variables
    else:
        raise RuntimeError("the loss reads other variables, or rows of another shape, each time it is called")
    check_not_trained([v for v, _ in done.written], variables)
    by_id = dict(zip((id(v) for v in tried), done.gradients(cotangent), strict=True))
    return Differentiated(done.out, [by_id[id(v)] for v in variables], variables, done.written)


def _discovered(loss: Callable[[], Any], var_list: Any, loss_of: Callable[[Any], Any]) -> Differentiated:
    """Returns what `differentiate` does, with zeros as gradients."""
    done = recording.call(loss, (), ())
    check_loss(loss_of(done.out))
    variables = resolve(var_list, done.reads)
    check_not_trained([v for v, _ in done.written.values()], variables)
    grads: list[Any] = []
    for v in variables:
        rows = done.rows.get(id(v), ())
        v._row_shapes = tuple(r.shape for r in rows)
        if not jnp.issubdtype(v.dtype, jnp.inexact) or id(v) not in done.reads and not v._unwatched:
            grads.append(None)
        elif rows:
            grads.append(_slices(v, rows, [jnp.zeros((*r.shape, *v.shape[1:]), v.dtype) for r in rows]))
        else:
            grads.append(jnp.zeros_like(v._value))
    return Differentiated(done.out, grads, variables, list(done.written.values()))


def resolve(var_list: Any, reads: dict[int, Variable]) -> list[Variable]:
    """Returns the variables of a `var_list`; by default, the trainable ones among those that were read."""
    if var_list is None:
        read = list(reads.values())
        trainable = recording.depends_on(lambda: [v.trainable for v in read])
        variables = [v for v, is_trained in zip(read, trainable, strict=True) if is_trained]
    else:
        variables = _flat(var_list)
        if callable(var_list) and not is_variable(var_list):
            recording.depends_on(lambda: [id(v) for v in _flat(var_list)])
    if not variables:
        raise ValueError("No variables to minimize: var_list is empty, or the loss reads no trainable variable")
    return variables


def _flat(var_list: Any) -> list[Variable]:
    given = var_list() if callable(var_list) and not is_variable(var_list) else var_list
    given = list(given) if isinstance(given, Iterable) and not isinstance(given, dict | str | Variable) else given
    leaves = jax.tree.leaves(given, is_leaf=lambda x: x is None or is_variable(x))
    if others := [x for x in leaves if not is_variable(x)]:
        raise ValueError(f"var_list must hold variables, got {others[0]!r}")
    return all_ours(leaves)


def value_and_grad(loss: Callable[[], Any], var_list: Any = None, has_aux: bool = False) -> tuple[Any, Any]:
    """Returns the loss and its gradients: what a loop with TensorFlow's GradientTape prints and applies.

    Args:
        loss: a function of no arguments that reads the variables and returns an array, or with `has_aux` the pair of
            it and anything else. The gradients are those of its sum. It may assign to variables that are not in
            `var_list` (such as running means).
        var_list: variables in any nesting, or a function that returns them; None means the trainable variables that
            the loss reads.

    Returns `(loss, gradients)`, or `((loss, aux), gradients)`. The gradients have the nesting of `var_list`: None for
    a variable that was not read, IndexedSlices after a `sparse_read`. Raises what `Optimizer.minimize` does.

    >>> v = Variable(3.0, name="v")
    >>> loss, (gradient,) = value_and_grad(lambda: v**2, [v])
    >>> float(loss), float(gradient)
    (9.0, 6.0)
    """
    done = differentiate(loss, var_list, loss_of=(lambda out: out[0]) if has_aux else lambda out: out)
    assign_all(done.written)
    out = done.out if has_aux else jnp.asarray(done.out)
    if var_list is None or callable(var_list) and not is_variable(var_list):
        return out, done.grads
    treedef = jax.tree.structure(var_list, is_leaf=is_variable)
    return out, treedef.unflatten(done.grads) if treedef.num_leaves == len(done.grads) else done.grads


def assign_all(written: Iterable[tuple[Any, Any]]) -> None:
    """Gives each cell its value."""
    for cell, x in written:
        cell._value = x


class Forward(NamedTuple):
    """The result of running a loss: its output, its reads and assignments, and a function for its gradients."""

    out: Any
    reads: dict[int, Variable]
    shapes: dict[int, Shapes]
    """Only for variables that were read by row and in no other way."""
    written: list[tuple[Any, Any]]
    """The cells that the loss assigned to, with their new values."""
    gradients: Callable[..., list[Any]]
    """Takes a cotangent (ones if None); returns a gradient for each variable, None if it was not read."""


def forward(
    loss: Callable[[], Any],
    trained: Sequence[Variable],
    values: Sequence[Any],
    shapes: Mapping[int, Shapes],
    loss_of: Callable[[Any], Any],
) -> Forward:
    """Runs `loss()` once, ready to be differentiated with respect to `trained`, which hold `values` while it runs.

    Assumes that variables in `shapes` are read only by `sparse_read`, with indices of these shapes, and makes no
    array of their size. If the shapes in the result differ, do not use its gradients. `loss_of` takes the result of
    `loss` and returns the number to differentiate.
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
        done = recording.call(loss, trained, [here[id(v)] for v in trained], steps=steps)
        value = loss_of(done.out)
        check_loss(value)
        seen.update(reads=done.reads, shapes={i: tuple(r.shape for r in rows) for i, rows in done.rows.items()})
        seen.update(written=[v for v, _ in done.written.values()])
        return jnp.asarray(value), (done.out, done.rows, [x for _, x in done.written.values()])

    value, vjp, (out, rows, written) = jax.vjp(of, [given[id(v)] for v in whole], zeros, has_aux=True)

    def gradients(cotangent: Any = None) -> list[Any]:
        ones = jnp.ones_like(value)
        cotangent = ones if cotangent is None else jnp.broadcast_to(jnp.asarray(cotangent, value.dtype), value.shape)
        by_whole, by_rows = vjp(cotangent)
        # JAX's gradient of a real loss is the conjugate of the direction in which it grows
        by_whole, by_rows = jax.tree.map(lambda g: jnp.conj(g) if jnp.iscomplexobj(g) else g, (by_whole, by_rows))
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


def check_callable(loss: Any) -> None:
    """Raises RuntimeError for a loss that is already an array."""
    if not callable(loss) or isinstance(loss, Variable):
        raise RuntimeError(
            "loss must be a function of no arguments that reads the variables: an array no longer knows how it "
            f"was computed. Write minimize(lambda: ..., var_list). Received: {type(loss).__name__}"
        )


def check_not_trained(written: Iterable[Variable], trained: Sequence[Variable]) -> None:
    """Raises ValueError if the loss assigns to a variable that is being trained."""
    if both := [v.name for v in written if any(v is t for t in trained)]:
        raise ValueError(f"the loss assigns to {both}, which are being trained; assign to them after the step")


def check_loss(loss: Any) -> None:
    """Raises TypeError unless the loss is an array of floats."""
    if not hasattr(loss, "dtype") or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(f"the loss must be an array of floats, got {loss!r}")
