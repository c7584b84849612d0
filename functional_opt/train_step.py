"""make_train_step: compiles loss, gradients and update into one program that reuses the buffers it gets."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import core
from jax.sharding import AxisType, Mesh, NamedSharding

from .core.apply import apply_updates
from .core.leaves import Tree, paths
from .core.transformation import GradientTransformation, as_transformation
from .microbatching import AccumulationType, Rows, loop_over_parts
from .placement.devices import Devices
from .placement.shardings import state_shardings
from .transforms.wrapping.shard import shard

Loss = Callable[..., Any]


def make_train_step(
    loss_fn: Loss,
    has_aux: bool = False,
    accumulate: int = 1,
    donate: bool = True,
    mesh: Mesh | None = None,
    shard: str | None = None,
) -> "TrainStep":
    """Makes `step(tx, params, state, *batch) -> params, state, loss`, compiled once for all `tx` of one structure.

    A step computes the loss and its gradients, updates the state and adds the updates to the params. `tx` is an
    argument whose numbers are inputs of the program, so another learning rate does not cause a recompilation.
    `update` also gets `value`, `grad`, `value_fn`, `obj_fn` and `grad_fn`, for line searches, Polyak steps,
    plateaus, Sophia and SAM.

    JAX pairs donated buffers with results in order. A step that takes and returns params and state in the same order,
    as this one does, writes the new ones over the old ones; `step(grads, state, params) -> params, state` would copy
    every slot. The params and the state that you pass are therefore deleted: continue with those that are returned.

    Args:
        loss_fn: `loss_fn(params, *batch)` returns a real scalar, or `(loss, aux)` with `has_aux`. If the loss is a
            mean over the rows of the batch, `accumulate` changes the memory but not the numbers.
        has_aux: whether `loss_fn` returns `(loss, aux)`, and a step `params, state, (loss, aux)`.
        accumulate: k ≥ 1 micro-batches, one after another, whose losses and gradients are averaged (in float32
            for 16-bit params) before the update. Each leaf of the batch has a first axis of rows that k divides.
            Micro-batch i has its rows i, i + k, i + 2k ..., so that a batch split among devices stays where it is.
            All micro-batches get the same scalars; a typed PRNG key is split. Aux gets a first axis of length k.
        donate: whether the buffers of params and state are reused; those of the batch never are.
        mesh: the devices of the step. Params that are not on it yet are placed on all of its devices.
        shard: an axis of the mesh over which the rows of the batch and the state are split. `tx` then stands for
            `shard(tx, axis)`, whose `init` makes a state in pieces; a whole one is split at the first step.

    Leaves of the params that are not floating or complex arrays are not trained: they are returned as they are.
    The gradient of a complex leaf is conjugated, so that the step descends. Params and state keep their shardings.
    An Optax transformation also works, and compiles once for each object.

    Raises TypeError or ValueError, with params and state not yet changed, for a loss that is not a real scalar, a
    batch without rows, and leaves of the batch that k does not divide.

    >>> import functional_opt as fo
    >>> step = fo.make_train_step(lambda w, x, y: jnp.mean((x * w - y) ** 2))
    >>> x = jnp.arange(4.0)
    >>> tx, w = fo.adam(0.1), jnp.zeros(())
    >>> state = tx.init(w)
    >>> for _ in range(100):
    ...     w, state, loss = step(tx, w, state, x, 3 * x)
    >>> round(w.item(), 1)
    3.0
    """
    return TrainStep(loss_fn, has_aux, accumulate, donate, _devices(mesh, shard))


class TrainStep:
    """A training step, made by `make_train_step` and documented there."""

    def __init__(self, loss_fn: Loss, has_aux: bool, accumulate: int, donate: bool, devices: Devices | None = None):
        if not callable(loss_fn):
            raise TypeError(f"loss_fn must be a function of the params and the batch, got {loss_fn!r}")
        for name, x in (("has_aux", has_aux), ("donate", donate)):
            if not isinstance(x, bool):
                raise TypeError(f"{name} must be True or False, got {x!r}")
        if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
            raise ValueError(
                f"accumulate must be the number of micro-batches, an integer of at least 1, got {accumulate!r}"
            )
        self._loss_fn, self._has_aux, self._k, self._devices = loss_fn, has_aux, accumulate, devices
        self._program = jax.jit(self._run, static_argnums=0, donate_argnums=(2, 3) if donate else ())

    def __call__(self, tx: Any, params: Tree, state: Any, *batch: Any) -> tuple[Tree, Any, Any]:
        try:
            params, state, loss = self._program(*self._arguments(tx, params, state, batch))
        except (RuntimeError, ValueError) as e:
            if lost := _lost_memory(e, {"params": params, "state": state, "batch": batch}):
                raise lost from e
            raise
        return _released(params), _released(state), loss

    def lower(self, tx: Any, params: Tree, state: Any, *batch: Any) -> jax.stages.Lowered:
        """Returns the program for such arguments without running it, as `jax.jit(...).lower` does."""
        return self._program.lower(*self._arguments(tx, params, state, batch))

    def _arguments(self, tx: Any, params: Tree, state: Any, batch: tuple) -> tuple[Any, ...]:
        if self._devices is not None:
            tx, params, state, batch = _placed_on(self._devices, tx, params, state, batch)
        return _arguments(tx, params, state, batch)

    def _run(self, layout, tx, params, state, batch):
        params, state = _released(params), _released(state)
        _check_rows(batch, self._k)
        self._check_arguments(params, batch)
        (loss, aux), grads = self._value_and_grad(params, batch)

        def value_fn(some):
            f = jax.checkpoint(lambda batch: self._loss(_filled(some, params), batch)[0])
            return self._over_micro_batches(f, batch, "mean")

        def grad_fn(some, *_):
            return self._value_and_grad(_filled(some, params), batch)[1]

        arrays = jax.tree.map(lambda x: x if _is_array(x) else None, params)
        extra = dict(value=loss, grad=grads, value_fn=value_fn, obj_fn=value_fn, grad_fn=grad_fn)
        updates, state = _after(loss, tx).update(grads, state, arrays, **extra)
        params = apply_updates(params, updates)
        out = _placed(layout, (_held(params, _is_array), _held(state, _is_number)))
        return *out, (loss, aux) if self._has_aux else loss

    def _check_arguments(self, params: Tree, batch: tuple) -> None:
        """Raises TypeError for a batch that is not what the loss takes, as when the state was left out of a call."""
        try:
            inspect.signature(self._loss_fn).bind(params, *batch)
        except ValueError:  # a callable that does not say what it takes
            return
        except TypeError as e:
            got = "nothing" if not batch else f"{len(batch)} arguments" if len(batch) > 1 else "one argument"
            raise TypeError(
                f"loss_fn(params, *batch): {e}. step(tx, params, state, *batch) got {got} as batch"
            ) from e

    def _value_and_grad(self, params: Tree, batch: tuple) -> tuple[tuple[Any, Any], Tree]:
        """Returns the mean loss and aux, and the gradients of the mean, which are None for leaves not trained."""
        leaves, treedef = jax.tree.flatten(params)
        trained = [i for i, x in enumerate(leaves) if _is_trained(x)]
        if not trained:
            raise ValueError(f"params must have a floating or complex array to train, got {params!r}")

        def part(batch):
            def loss(values):
                now = dict(zip(trained, values, strict=True))
                return self._loss(treedef.unflatten([now.get(i, x) for i, x in enumerate(leaves)]), batch)

            return jax.value_and_grad(loss, has_aux=True)([leaves[i] for i in trained])

        (loss, aux), grads = self._over_micro_batches(part, batch, (("mean", "stack"), "mean"))
        found = dict(zip(trained, map(jnp.conj, grads), strict=True))
        return (loss, aux), treedef.unflatten([found.get(i) for i in range(len(leaves))])

    def _loss(self, params: Tree, batch: tuple) -> tuple[jax.Array, Any]:
        """Returns the loss, after a check that it is a real scalar, and aux, or None without aux."""
        out, aux = self._loss_fn(params, *batch), None
        if self._has_aux:
            if not (isinstance(out, tuple) and len(out) == 2):
                raise TypeError(f"loss_fn must return (loss, aux), as has_aux=True says, got {out!r}")
            out, aux = out
        elif isinstance(out, tuple):
            raise TypeError(
                f"loss_fn must return a scalar, got a tuple of {len(out)}; for (loss, aux) set has_aux=True"
            )
        if not hasattr(out, "dtype") and not isinstance(out, int | float | complex):
            raise TypeError(f"loss_fn must return a scalar, got {out!r} ({type(out).__name__})")
        if jnp.shape(out) != ():
            raise ValueError(
                f"loss_fn must return a scalar, got shape {jnp.shape(out)}: take the mean over the batch"
            )
        if not jnp.issubdtype(jnp.result_type(out), jnp.floating):
            raise TypeError(f"loss_fn must return a real floating scalar, got dtype {jnp.result_type(out)}")
        return jnp.asarray(out), aux

    def _over_micro_batches(self, part: Callable[[tuple], Any], batch: tuple, how: Any) -> Any:
        """Returns `part(batch)`, or the "mean" or "stack", as in `how`, of the results for the micro-batches."""
        k = self._k
        if k == 1:
            return part(batch)
        leaves, treedef = jax.tree.flatten(batch)
        keys = {i: jax.random.split(x, k) for i, x in enumerate(leaves) if _is_key(x)}
        where = [i for i, x in enumerate(leaves) if jnp.ndim(x)]
        rows = Rows("batch", treedef.unflatten([x if jnp.ndim(x) else None for x in leaves]))
        cut = rows.split(k, rows.rows()[0] // k)

        def micro(i):
            now = dict(zip(where, jax.tree.leaves(rows.part(cut, i)), strict=True))
            now |= {j: x[i] for j, x in keys.items()}
            out = part(treedef.unflatten([now.get(j, x) for j, x in enumerate(leaves)]))
            return jax.tree.map(lambda h, x: jax.tree.map(lambda y: y[None], x) if h == "stack" else x, how, out)

        kinds = {"mean": AccumulationType.MEAN, "stack": AccumulationType.CONCAT}
        return loop_over_parts(micro, k, jax.tree.map(kinds.get, how))


# The arguments of a step


def _arguments(tx: Any, params: Tree, state: Any, batch: tuple) -> tuple[Any, ...]:
    params, state = _held(params, _is_array), _held(state, _is_number)
    return _layout((params, state)), as_transformation(tx), params, state, batch


def _lost_memory(e: Exception, arguments: dict[str, Any]) -> Exception | None:
    """Returns the error for an array whose memory an earlier step reused, or that a step gets twice; else None."""
    if not ("deleted" in str(e) or "donate" in str(e)):
        return None
    seen: dict[int, str] = {}
    for name, tree in arguments.items():
        for path, x in zip(paths(tree), jax.tree.leaves(tree), strict=True):
            if not isinstance(x, jax.Array) or isinstance(x, core.Tracer):
                continue
            if x.is_deleted():
                return RuntimeError(
                    f"{name}{path} is gone: an earlier step reused its memory. Go on with the params and the state "
                    "that the step returned, or keep the old ones by make_train_step(..., donate=False)"
                )
            if (first := seen.setdefault(id(x), name + path)) != name + path:
                return RuntimeError(
                    f"{first} and {name}{path} are one array, and a step can reuse its memory only once. Copy it "
                    "(jnp.copy) for one of them, or use make_train_step(..., donate=False)"
                )
    return None


def _check_rows(batch: tuple, k: int) -> None:
    """Raises ValueError for a batch without rows, or one that cannot be split into k micro-batches."""
    shapes = {f"batch{path}": jnp.shape(x) for path, x in zip(paths(batch), jax.tree.leaves(batch), strict=True)}
    for name, shape in shapes.items():
        if shape and shape[0] == 0:
            raise ValueError(f"{name} has no rows: its shape is {shape}")
        if shape and shape[0] % k:
            raise ValueError(
                f"{name} has shape {shape}: accumulate={k} must divide the first axis, which has the rows"
            )
    rows = {shape[0]: f"{name} of shape {shape}" for name, shape in shapes.items() if shape}
    if k > 1 and len(rows) != 1:
        got = " and ".join(rows.values()) or "none with rows"
        raise ValueError(f"accumulate={k} needs leaves of the batch with the same number of rows, got {got}")


def _is_key(x: Any) -> bool:
    """Returns whether a leaf is a single typed PRNG key."""
    return jnp.ndim(x) == 0 and jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def _is_trained(x: Any) -> bool:
    return _is_array(x) and jnp.issubdtype(jnp.result_type(x), jnp.inexact)


# Several devices


def _devices(mesh: Mesh | None, axis: str | None) -> Devices | None:
    if mesh is None and axis is None:
        return None
    if mesh is None or axis is None:
        raise ValueError(f"mesh and shard go together: the devices and the axis to split over, got {mesh}, {axis!r}")
    return Devices(mesh, axis)


def _placed_on(
    devices: Devices, tx: Any, params: Tree, state: Any, batch: tuple
) -> tuple[GradientTransformation, Tree, Any, tuple]:
    """Returns the arguments of a step placed on the devices; what lies there already stays as it is."""
    tx = as_transformation(tx)
    tx = tx if isinstance(tx, shard) else shard(tx, devices.axis)
    params = jax.tree.map(lambda x: devices.put(x) if _is_array(x) and not devices.have(x) else x, params)
    if not all(map(devices.have, filter(_is_array, jax.tree.leaves(state)))):
        state = jax.tree.map(jax.device_put, state, state_shardings(tx, params, devices.mesh))
    for path, x in zip(paths(batch), jax.tree.leaves(batch), strict=True):
        if not devices.divide(x):
            raise ValueError(f"batch{path} has shape {jnp.shape(x)}: {devices.parts} devices must divide its rows")
    return tx, params, state, jax.tree.map(devices.rows, batch)


# Leaves that are not arrays, such as the activation function of a model


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Held:
    """A leaf that is not an input of the program but part of it."""

    value: Any


def _is_array(x: Any) -> bool:
    """Returns whether a leaf of the params is an array, or a float or complex number that stands for one."""
    return hasattr(x, "dtype") and hasattr(x, "shape") or isinstance(x, float | complex)


def _is_number(x: Any) -> bool:
    return _is_array(x) or isinstance(x, int)


def _held(tree: Tree, is_input: Callable[[Any], bool]) -> Tree:
    if all(map(is_input, jax.tree.leaves(tree))):
        return tree
    return jax.tree.map(lambda x: x if is_input(x) else _Held(x), tree)


def _released(tree: Tree) -> Tree:
    return jax.tree.map(
        lambda x: x.value if isinstance(x, _Held) else x, tree, is_leaf=lambda x: isinstance(x, _Held)
    )


def _filled(some: Tree, params: Tree) -> Tree:
    """Returns the params with the arrays of `some`, which has None in place of other leaves."""
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(
        [x if y is None else y for x, y in zip(leaves, treedef.flatten_up_to(some), strict=True)]
    )


def _after(loss: jax.Array, tx: GradientTransformation) -> GradientTransformation:
    """Returns the same transformation with numbers that depend on the loss.

    XLA does not know that the loss reads the params before the update writes over them. It copies the params to be
    safe, unless the update depends on the loss. No loss is above infinity, but XLA does not know that either.
    """

    def leaf(x):
        return jnp.where(loss > jnp.inf, jnp.nan, x) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x

    return jax.tree.map(leaf, tx)


# The placement of arrays on a mesh. XLA may place results differently from the arguments that they replace. Then it
# cannot reuse buffers, and would compile again for the next step.


def _layout(tree: Tree) -> tuple | None:
    """Returns the shardings of the leaves that are on several devices; None if there are none."""
    found = tuple(map(_sharding, jax.tree.leaves(tree)))
    return found if any(found) else None


def _sharding(x: Any) -> NamedSharding | None:
    if isinstance(x, core.Tracer) or not isinstance(x, jax.Array):
        return None
    sharding = x.sharding
    if not isinstance(sharding, NamedSharding) or sharding.num_devices == 1:
        return None
    return sharding if all(kind is AxisType.Auto for kind in sharding.mesh.axis_types) else None


def _placed(layout: tuple | None, tree: Tree) -> Tree:
    leaves, treedef = jax.tree.flatten(tree)
    if layout is None or len(leaves) != len(layout):
        return tree
    place = jax.lax.with_sharding_constraint
    return treedef.unflatten([x if to is None else place(x, to) for x, to in zip(leaves, layout, strict=True)])
