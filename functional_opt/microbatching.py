"""microbatch, micro_vmap, micro_grad: a function of a batch, computed on one small part after the other."""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .leaves import Tree, narrow, widen


@dataclass(frozen=True)
class Accumulator:
    """How the results x₀, x₁ ... of micro-batches become one, leaf by leaf.

    `init(shape and dtype of x₀)` gives a carry, `update(carry, x, i)` the next one, `finalize(carry)` the result;
    `aggregate(x)` makes one of the rows of a micro-batch, for `micro_vmap`.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], Any]
    finalize: Callable[[Any], Any]
    aggregate: Callable[[Any], Any]


class AccumulationType(enum.Enum):
    """The mean, the sum, or the results one after another along axis 0. RUNNING_MEAN is MEAN here."""

    MEAN = 1
    SUM = 2
    RUNNING_MEAN = 3
    CONCAT = 4


def microbatch(
    fun: Callable,
    argnums: int | Sequence[int],
    microbatch_size: int | None,
    accumulator: Any = AccumulationType.SUM,
    *,
    argnames: str | Sequence[str] = (),
    in_axes: int | Sequence[int] = 0,
    num_real_microbatches: Any = None,
) -> Callable:
    """`fun` on one micro-batch after the other, the results accumulated: less memory, the same numbers.

    Sums and means of 16-bit results are taken in float32. Micro-batch i is the i-th run of rows.

    Args:
        fun: any function.
        argnums, argnames: the positions and names of the arguments that have a batch axis.
        microbatch_size: rows in a micro-batch; it divides those of the batch. None: `fun` itself, on all of it.
        accumulator: an `AccumulationType` or `Accumulator`, or a tree of them that is a prefix of the result.
        in_axes: the batch axis of those arguments, one for all or one for each.
        num_real_microbatches: how many are computed, if not all; may be traced. Means are over these, rows
            of the others are zero.

    Raises ValueError where the size does not divide the batch, or arguments have batches of different sizes.

    >>> f = microbatch(lambda x: (x + 1, jnp.sum(x)), 0, 2, (AccumulationType.CONCAT, AccumulationType.SUM))
    >>> rows, total = f(jnp.arange(4))
    >>> rows.tolist(), total.item()
    ([1, 2, 3, 4], 6)
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    names = (argnames,) if isinstance(argnames, str) else tuple(argnames)
    keys = (*numbers, *names)
    axes = (in_axes,) * len(keys) if isinstance(in_axes, int) else tuple(in_axes)
    if len(axes) != len(keys):
        raise ValueError(f"in_axes must be one axis, or one for each of {keys}, got {in_axes!r}")

    def run(*args, **kwargs):
        size = microbatch_size
        if size is None:
            return fun(*args, **kwargs)
        inputs = {**dict(enumerate(args)), **kwargs}
        batches = [(k, a, _move(inputs[k], a, 0)) for k, a in zip(keys, axes, strict=True)]
        rows = {x.shape[0] for x in jax.tree.leaves([x for _, _, x in batches])}
        if len(rows) != 1 or min(rows) % size:
            got = " and ".join(map(str, sorted(rows)))
            raise ValueError(f"microbatch_size={size} must divide the rows of the batch, got {got}")
        n = rows.pop() // size
        n_real = n if num_real_microbatches is None else num_real_microbatches

        def part(i):
            now = dict(inputs)
            for k, a, x in batches:
                now[k] = _move(jax.tree.map(lambda y: _rows(y, i, size), x), 0, a)
            return fun(*(now[j] for j in range(len(args))), **{k: now[k] for k in kwargs})

        shapes = jax.eval_shape(part, 0)
        rules = _spread(accumulator, shapes, n, n_real)
        treedef = jax.tree.structure(shapes)
        structs = jax.tree.leaves(shapes)

        def step(i, carries):
            xs = jax.tree.leaves(part(i))
            return [rule.update(c, x, i) for rule, c, x in zip(rules, carries, xs, strict=True)]

        carries = [rule.init(s) for rule, s in zip(rules, structs, strict=True)]
        carries = jax.lax.fori_loop(0, n_real, step, carries)
        return treedef.unflatten([rule.finalize(c) for rule, c in zip(rules, carries, strict=True)])

    return run


def micro_vmap(
    fun: Callable,
    in_axes: int | Sequence[int | None] = 0,
    out_axes: Any = 0,
    *,
    microbatch_size: int | None = None,
    vmap_fn: Callable = jax.vmap,
    accumulator: Any = AccumulationType.CONCAT,
    num_real_microbatches: Any = None,
) -> Callable:
    """`jax.vmap`, on one micro-batch after the other, with sums or means over the batch if asked for.

    Args:
        in_axes: as in `jax.vmap`, an axis or None for each argument.
        out_axes: 0, nothing else.
        vmap_fn: what maps a micro-batch: `f(fun, in_axes, out_axes)`.
        microbatch_size, accumulator, num_real_microbatches: as in `microbatch`.

    >>> micro_vmap(lambda x: x**2, microbatch_size=2, accumulator=AccumulationType.SUM)(jnp.arange(4)).item()
    14
    """
    if out_axes != 0:
        raise ValueError(f"out_axes must be 0, got {out_axes!r}")

    def run(*args):
        axes = (in_axes,) * len(args) if isinstance(in_axes, int) else tuple(in_axes)
        mapped = vmap_fn(fun, axes, 0)

        def rows(*args):
            out = mapped(*args)
            rules = _spread(accumulator, out, 1, 1)
            leaves = [rule.aggregate(x) for rule, x in zip(rules, jax.tree.leaves(out), strict=True)]
            return jax.tree.structure(out).unflatten(leaves)

        numbers = tuple(i for i, a in enumerate(axes) if a is not None)
        batched = tuple(a for a in axes if a is not None)
        return microbatch(
            rows, numbers, microbatch_size, accumulator, in_axes=batched, num_real_microbatches=num_real_microbatches
        )(*args)

    return run


class IndividualOutputs(NamedTuple):
    """Of each example: `values` of the function, `metrics` of its gradient, and what else the function gave."""

    values: Any
    metrics: Any
    aux: Any


def _same(x: Any) -> Any:
    return x


def _nothing(x: Any) -> None:
    return None


def micro_grad(
    fun: Callable,
    has_aux: bool = False,
    argnums: int | Sequence[int] = 0,
    *,
    batch_argnums: int | Sequence[int] = 1,
    keep_batch_dim: bool = True,
    microbatch_size: int | None = None,
    accumulator: Any = AccumulationType.SUM,
    transform_fn: Callable = _same,
    metrics_fn: Callable = _nothing,
    num_real_microbatches: Any = None,
) -> Callable:
    """Gradients of each example, transformed and then accumulated: clipped ones, their squares ...

    Args:
        fun, has_aux, argnums: as in `jax.value_and_grad`.
        batch_argnums: the arguments with a batch along axis 0.
        keep_batch_dim: whether `fun` gets an example as a batch of one.
        transform_fn: what is done to the gradient of each example before it is accumulated.
        metrics_fn: what else is wanted of it; given for every example.
        microbatch_size, accumulator, num_real_microbatches: as in `microbatch`.

    Returns a function that gives the accumulated gradients and an `IndividualOutputs`.

    >>> f = micro_grad(lambda w, x: jnp.sum(w * x), transform_fn=lambda g: (g, g**2))
    >>> (total, squares), _ = f(1.0, jnp.array([1.0, 2.0]))
    >>> total.item(), squares.item()
    (3.0, 5.0)
    """
    batched = (batch_argnums,) if isinstance(batch_argnums, int) else tuple(batch_argnums)

    def one(*args):
        if keep_batch_dim:
            args = [jax.tree.map(lambda x: x[None], x) if i in batched else x for i, x in enumerate(args)]
        value, grads = jax.value_and_grad(fun, argnums, has_aux)(*args)
        value, aux = value if has_aux else (value, None)
        return transform_fn(grads), IndividualOutputs(value, metrics_fn(grads), aux)

    def run(*args):
        axes = tuple(0 if i in batched else None for i in range(len(args)))
        return micro_vmap(
            one,
            axes,
            microbatch_size=microbatch_size,
            accumulator=(accumulator, AccumulationType.CONCAT),
            num_real_microbatches=num_real_microbatches,
        )(*args)

    return run


def _move(tree: Tree, source: int, destination: int) -> Tree:
    return jax.tree.map(lambda x: jnp.moveaxis(x, source, destination), tree)


def _rows(x: jax.Array, i: Any, size: int) -> jax.Array:
    """The i-th run of `size` rows."""
    return jax.lax.dynamic_slice_in_dim(x, i * size, size)


def _spread(accumulator: Any, tree: Tree, n: int, n_real: Any) -> list[Accumulator]:
    """An accumulator for every leaf of a result."""
    is_rule = lambda x: isinstance(x, Accumulator | AccumulationType)  # noqa: E731
    treedef = jax.tree.structure(accumulator, is_leaf=is_rule)
    rules = jax.tree.leaves(accumulator, is_leaf=is_rule)
    return [
        rule if isinstance(rule, Accumulator) else _accumulator(rule, n, n_real)
        for rule, part in zip(rules, treedef.flatten_up_to(tree), strict=True)
        for _ in jax.tree.leaves(part)
    ]


def _accumulator(kind: AccumulationType, n: int, n_real: Any) -> Accumulator:
    if kind is AccumulationType.CONCAT:

        def start(s):
            return jnp.zeros((n, *s.shape), s.dtype)

        return Accumulator(start, lambda c, x, i: c.at[i].set(x), lambda c: c.reshape(-1, *c.shape[2:]), _same)
    mean = kind is not AccumulationType.SUM

    def zero(s):
        like = jnp.zeros(s.shape, s.dtype)
        like = like / 1 if mean else like
        return jnp.asarray(widen(like)), jnp.zeros([], like.dtype)

    def finalize(carry):
        total, like = carry
        return narrow(total / n_real if mean else total, like)

    def aggregate(x):
        return narrow((jnp.mean if mean else jnp.sum)(widen(x), axis=0), x / 1 if mean else x)

    return Accumulator(zero, lambda c, x, i: (c[0] + narrow(x, c[0]), c[1]), finalize, aggregate)
