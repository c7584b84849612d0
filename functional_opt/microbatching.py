"""microbatch, micro_vmap, micro_grad: compute a function of a batch on small parts, one after another."""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .core.leaves import Tree, as_array, cast_like, paths, widen
from .core.sharding import match_type, shard_count, varying_axes


@dataclass(frozen=True)
class Accumulator:
    """Combines the results of the micro-batches, x₀, x₁ ..., into one, leaf by leaf.

    `init(s)` returns a carry, where `s` has the shape and dtype of x₀; `update(carry, x, i)` returns the next carry
    and `finalize(carry)` the result. `aggregate(x)` combines the rows of one micro-batch, for `micro_vmap`.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], Any]
    finalize: Callable[[Any], Any]
    aggregate: Callable[[Any], Any]


class AccumulationType(enum.Enum):
    """The mean, the sum, or all results along axis 0, in the batch's order. RUNNING_MEAN is MEAN here."""

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
    """Runs `fun` on one micro-batch after another and accumulates the results: less memory, the same numbers.

    Micro-batches interleave: of k micro-batches, number i has rows i, i + k, i + 2k ... So a batch whose rows
    are split among devices stays where it is, and every device works on its own rows, provided that
    `microbatch_size` is a multiple of the number of devices. Concatenated rows come out in the batch's order. Sums
    and means of 16-bit results are computed in float32.

    Args:
        fun: any function.
        argnums, argnames: the positions and names of the arguments that have a batch axis.
        microbatch_size: the number of rows in a micro-batch, which must divide that of the batch. None returns `fun`
            itself, which runs on the entire batch.
        accumulator: an `AccumulationType` or `Accumulator`, or a tree of them that is a prefix of the result.
        in_axes: the batch axis of those arguments, one for all or one for each.
        num_real_microbatches: the number of micro-batches to compute, if not all; may be traced. Means are over
            these, and the rows of the others are zero.

    Raises ValueError if the number of rows is not divisible by the size, or the size not by the number of devices of
    an explicit sharding, or if arguments have batches of different sizes or no batch.

    >>> f = microbatch(lambda x: (x + 1, jnp.sum(x)), 0, 2, (AccumulationType.CONCAT, AccumulationType.SUM))
    >>> rows, total = f(jnp.arange(4))
    >>> rows.tolist(), total.item()
    ([1, 2, 3, 4], 6)

    Differs from Optax: `MEAN` with `num_real_microbatches` is over these only, not over all, and accepts integers.
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    names = (argnames,) if isinstance(argnames, str) else tuple(argnames)
    axes = (in_axes,) * len(numbers + names) if isinstance(in_axes, int) else tuple(in_axes)
    if len(axes) != len(numbers + names):
        raise ValueError(f"in_axes must be one axis, or one for each of {(*numbers, *names)}, got {in_axes!r}")
    size = microbatch_size
    if size is None:
        return fun
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"microbatch_size must be a positive integer or None, got {size!r}")

    def run(*args, **kwargs):
        inputs: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        keys = [i + len(args) if isinstance(i, int) and i < 0 else i for i in (*numbers, *names)]
        if missing := [key for key in keys if key not in inputs]:
            raise ValueError(
                f"argnums and argnames must name arguments of the call, got {missing[0]!r} in a call with "
                f"{len(args)} positional arguments and the keywords {sorted(kwargs)}"
            )
        batches = {key: Rows(f"argument {key!r}", inputs[key], axis) for key, axis in zip(keys, axes, strict=True)}
        n = _number(batches, size)
        n_real = n if num_real_microbatches is None else num_real_microbatches
        if isinstance(n_real, int | np.integer) and not 0 <= n_real <= n:
            raise ValueError(f"num_real_microbatches must be between 0 and {n}, the number of all, got {n_real}")
        inputs |= {key: batch.split(n, size) for key, batch in batches.items()}

        def part(i):
            now = {**inputs, **{key: batch.part(inputs[key], i) for key, batch in batches.items()}}
            return fun(*(now[j] for j in range(len(args))), **{k: now[k] for k in kwargs})

        return loop_over_parts(part, n, accumulator, n_real)

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
    """Maps `fun` as `jax.vmap` does, one micro-batch after another; can sum or average the results.

    Args:
        fun: a function of one example; keyword arguments are mapped along axis 0.
        in_axes: as in `jax.vmap`, an axis or None for each argument.
        out_axes: must be 0.
        vmap_fn: the function that maps `fun` over a micro-batch, called as `vmap_fn(fun, in_axes, out_axes)`.
        microbatch_size, accumulator, num_real_microbatches: as in `microbatch`.

    >>> micro_vmap(lambda x: x**2, microbatch_size=2, accumulator=AccumulationType.SUM)(jnp.arange(4)).item()
    14
    """
    if out_axes != 0:
        raise ValueError(f"out_axes must be 0, got {out_axes!r}")

    def run(*args, **kwargs):
        axes = (in_axes,) * len(args) if isinstance(in_axes, int) else tuple(in_axes)
        mapped = vmap_fn(fun, axes, 0)

        def rows(*args, kwargs):
            out = mapped(*args, **kwargs)
            rules = _spread(accumulator, out, 1, 1)
            leaves = [rule.aggregate(x) for rule, x in zip(rules, jax.tree.leaves(out), strict=True)]
            return jax.tree.structure(out).unflatten(leaves)

        numbers = tuple(i for i, a in enumerate(axes) if a is not None)
        batched = (*(a for a in axes if a is not None), 0)
        return microbatch(
            rows,
            numbers,
            microbatch_size,
            accumulator,
            argnames="kwargs",
            in_axes=batched,
            num_real_microbatches=num_real_microbatches,
        )(*args, kwargs=kwargs)

    return run


class IndividualOutputs(NamedTuple):
    """Results for each example: `values` of the function, `metrics` of its gradient, and the function's `aux`."""

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
    """Transforms the gradient of each example, by clipping or squaring for instance, and accumulates the results.

    Args:
        fun, has_aux, argnums: as in `jax.value_and_grad`.
        batch_argnums: the arguments with a batch along axis 0.
        keep_batch_dim: whether `fun` gets an example as a batch of one.
        transform_fn: a function of the gradient of each example, applied before it is accumulated.
        metrics_fn: a function of the gradient of each example, whose values are returned for every example.
        microbatch_size, accumulator, num_real_microbatches: as in `microbatch`.

    Returns a function that returns the accumulated gradients and an `IndividualOutputs`.

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


def loop_over_parts(part: Callable[[Any], Tree], n: int, accumulator: Any, n_real: Any = None) -> Tree:
    """Combines `part(0)` ... `part(n − 1)`, or the first `n_real` of them, by an accumulator or a tree of them."""
    n_real = n if n_real is None else n_real
    closed, shapes = jax.make_jaxpr(part, return_shape=True)(np.int32(0))  # traced only here
    rules = _spread(accumulator, shapes, n, n_real)

    from jax.extend.core import jaxpr_as_fun  # slow to import

    def step(i, carries):
        xs = jaxpr_as_fun(closed)(jnp.asarray(i, jnp.int32))
        return [rule.update(c, x, i) for rule, c, x in zip(rules, carries, xs, strict=True)]

    carries = [rule.init(s) for rule, s in zip(rules, closed.out_avals, strict=True)]
    carries = jax.lax.fori_loop(0, n_real, step, _settled(carries, step, closed.out_avals))
    results = [rule.finalize(c) for rule, c in zip(rules, carries, strict=True)]
    return jax.tree.structure(shapes).unflatten(results)


class Rows:
    """An argument with a batch axis: a tree whose leaves have their rows along one axis."""

    def __init__(self, name: str, tree: Tree, axis: int = 0):
        leaves, self.treedef = jax.tree.flatten(tree)
        self.names = [f"{name}{path}" for path in paths(tree)]
        self.leaves, self.axes = [], []
        for x, name in zip(leaves, self.names, strict=True):
            x = as_array(x, lambda name=name: name)
            if not -x.ndim <= axis < x.ndim:
                raise ValueError(f"{name} must have a batch axis {axis}, got shape {x.shape}")
            self.leaves.append(jnp.asarray(x))
            self.axes.append(axis % x.ndim)

    def rows(self) -> list[int]:
        return [x.shape[axis] for x, axis in zip(self.leaves, self.axes, strict=True)]

    def split(self, n: int, size: int) -> list[jax.Array]:
        """Replaces the batch axis of each leaf by two axes, (size, n). Row i + n j of the batch is at (j, i)."""
        cut = []
        for x, axis, name in zip(self.leaves, self.axes, self.names, strict=True):
            if size % (devices := shard_count(x, axis)):
                raise ValueError(
                    f"micro-batches of {size} rows cannot be split among the {devices} devices that have the rows of "
                    f"{name}: make their size a multiple of {devices}"
                )
            cut.append(x.reshape(*x.shape[:axis], size, n, *x.shape[axis + 1 :]))
        return cut

    def part(self, leaves: list[jax.Array], i: Any) -> Tree:
        """Returns micro-batch i of the leaves that `split` returned."""
        some = [
            jax.lax.dynamic_index_in_dim(x, i, a + 1, keepdims=False) for x, a in zip(leaves, self.axes, strict=True)
        ]
        return self.treedef.unflatten(some)


def _number(batches: dict[Any, Rows], size: int) -> int:
    """Returns the number of micro-batches of a given size in a batch."""
    found = {rows: name for batch in batches.values() for rows, name in zip(batch.rows(), batch.names, strict=True)}
    if len(found) != 1:
        got = " and ".join(f"{rows} ({name})" for rows, name in sorted(found.items())) or "no array"
        raise ValueError(f"the arguments with a batch axis must have the same number of rows, got {got}")
    rows = min(found)
    if rows == 0 or rows % size:
        raise ValueError(f"the rows of the batch must be divisible by microbatch_size={size}, got {rows}")
    return rows // size


def _settled(carries: list, step: Callable, results: Sequence[Any]) -> list:
    """Gives the carries the types that they have after a step: an explicit sharding, or varying in `shard_map`."""
    for _ in range(2):  # the types that one round changes may change those of other carries in the next
        if not any(varying_axes(x) or any(x.sharding.spec) for x in results):
            break
        after = jax.make_jaxpr(step)(np.int32(0), carries).out_avals
        leaves, treedef = jax.tree.flatten(carries)
        if len(after) == len(leaves):
            carries = treedef.unflatten([match_type(x, like) for x, like in zip(leaves, after, strict=True)])
    return carries


def _spread(accumulator: Any, tree: Tree, n: int, n_real: Any) -> list[Accumulator]:
    """Returns an accumulator for every leaf of a result."""
    is_rule = lambda x: isinstance(x, Accumulator | AccumulationType)  # noqa: E731
    rules, treedef = jax.tree.flatten(accumulator, is_leaf=is_rule)
    if wrong := [rule for rule in rules if not is_rule(rule)]:
        raise TypeError(f"accumulator must be made of AccumulationType and Accumulator, got {wrong[0]!r}")
    return [
        rule if isinstance(rule, Accumulator) else _accumulator(rule, n, n_real)
        for rule, part in zip(rules, treedef.flatten_up_to(tree), strict=True)
        for _ in jax.tree.leaves(part)
    ]


def _at(x: Any) -> int:
    """Returns the axis of the micro-batches in the arrays of CONCAT: after the axis of the rows, as in the batch."""
    return min(x.ndim, 1)


def _accumulator(kind: AccumulationType, n: int, n_real: Any) -> Accumulator:
    if kind is AccumulationType.CONCAT:

        def start(s):
            zeros = jnp.expand_dims(match_type(jnp.zeros(s.shape, s.dtype), s), _at(s))
            return jnp.broadcast_to(zeros, (*s.shape[: _at(s)], n, *s.shape[_at(s) :]))

        def put(c, x, i):
            return jax.lax.dynamic_update_index_in_dim(c, x, i, _at(x))

        def join(c):
            return c.reshape(-1, *c.shape[2:])

        return Accumulator(start, put, join, _same)
    mean = kind is not AccumulationType.SUM

    def zero(s):
        like = match_type(jnp.zeros(s.shape, s.dtype), s)
        like = like / 1 if mean else like
        return jnp.asarray(widen(like)), jnp.zeros([], like.dtype)

    def finalize(carry):
        total, like = carry
        return cast_like(total / jnp.maximum(n_real, 1) if mean else total, like)

    def aggregate(x):
        return cast_like((jnp.mean if mean else jnp.sum)(widen(x), axis=0), x / 1 if mean else x)

    return Accumulator(zero, lambda c, x, i: (c[0] + cast_like(x, c[0]), c[1]), finalize, aggregate)
