"""TrainStep: loss, gradients and update as one compiled program over variables."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from ..variables import recording
from ..variables.gradients import resolve
from .program import Program
from .replicas import vary_over
from .split import Split


class Loss:
    """A loss whose assignments wait until the step is taken, and whose result can be had afterwards.

    `fn` is the loss function of no arguments, which returns the loss, or with `has_aux` a pair.
    """

    def __init__(self, fn: Callable[[], Any], has_aux: bool = False):
        self.fn, self._has_aux = fn, has_aux
        self.known, self.out = False, None
        self.written: list[tuple[Any, Any]] = []

    def __call__(self) -> Any:
        return self.of(self.fn())

    def of(self, out: Any) -> Any:
        """Returns the loss in what `fn` returns."""
        return out[0] if self._has_aux else out

    def note(self, out: Any, written: list[tuple[Any, Any]]) -> None:
        """Keeps the result of the first call, and the assignments of the last."""
        self.out, self.known = (self.out if self.known else out), True
        self.written = written


class TrainStep:
    """A function of the batch that does one training step. See `Optimizer.make_train_step`, which makes it."""

    def __init__(
        self,
        optimizer: Any,
        loss_fn: Callable,
        var_list: Any,
        has_aux: bool,
        mesh: Mesh | None = None,
        shard: str | None = None,
    ):
        axis = optimizer.axis_name
        self._split = _split(mesh, shard, axis)
        self._placed: set[int] = set()  # the ids of variables whose slots are in pieces
        if self._split is not None:
            mesh = None  # the program is one for all devices
        if mesh is not None and not (isinstance(axis, str) and axis in mesh.axis_names):
            raise ValueError(f"mesh must have the optimizer's axis_name, which is {axis!r}, among {mesh.axis_names}")
        self._optimizer, self._loss_fn, self._var_list, self._has_aux = optimizer, loss_fn, var_list, has_aux
        # without axis types, so that arrays with any sharding are accepted, and jax.jit moves them
        self._mesh = None if mesh is None else Mesh(mesh.devices, mesh.axis_names)
        wrap = self._on_devices if mesh is not None else self._split.keep if self._split else lambda pure: pure
        self._program = Program(self._step, wrap)

    def __call__(self, *batch: Any) -> Any:
        return self._program(*(batch if self._split is None else self._in_pieces(self._split, batch)))

    def _in_pieces(self, split: Split, batch: tuple) -> tuple:
        """Places the slots at the first step, before there is a state on one device, and splits the batch."""
        leaves, treedef = jax.tree.flatten(batch)
        batch = treedef.unflatten(split.batch(leaves))
        engine = self._optimizer._engine
        if not self._placed or {id(v) for v in engine.known()} != self._placed:
            reads = recording.call(lambda: jax.eval_shape(lambda: self._loss_fn(*batch)), (), ()).reads
            self._optimizer.build(resolve(self._var_list, reads))
            split.place(engine, [*engine.known(), *reads.values(), *engine.counters()])
            self._placed = {id(v) for v in engine.known()}
        return batch

    def lower(self, *batch: Any) -> jax.stages.Lowered:
        """Lowers the program for such a batch, as `jax.jit(...).lower`, to inspect its code, cost and memory."""
        return self._program.lower(*batch)

    def _step(self, *batch: Any) -> Any:
        loss = Loss(lambda: self._loss_fn(*batch), self._has_aux)
        # code of the user's may differentiate the loss itself, in a trace whose results stay there
        before = recording.call(loss.fn, (), ()).out if self._optimizer._differentiates else None
        self._optimizer.minimize(loss, self._var_list)
        out = loss.out if loss.known else before
        if self._mesh is None:
            return out
        for cell, _ in loss.written:
            x = vary_over(cell._value, self._optimizer.axis_name)
            mean = jax.lax.pmean if jnp.issubdtype(x.dtype, jnp.inexact) else jax.lax.pmax
            cell._value = mean(x, self._optimizer.axis_name).astype(x.dtype)
        return jax.tree.map(lambda x: jnp.asarray(x)[None], out)

    def _on_devices(self, pure: Callable) -> Callable:
        """Maps a program over the mesh: its values are the same on all devices, its batch is split."""

        def run(donated, kept, lifted, batch):
            axis, whole = self._optimizer.axis_name, PartitionSpec()
            split = [PartitionSpec(axis) if jnp.ndim(x) else whole for x in batch]

            in_specs = whole, whole, whole, split
            out_specs = whole, PartitionSpec(axis)
            mapped = jax.shard_map(pure, mesh=self._mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
            return mapped(donated, kept, lifted, batch)

        return run


def _split(mesh: Mesh | None, shard: str | None, axis_name: Any) -> Split | None:
    if shard is None:
        return None
    if mesh is None:
        raise ValueError(f"shard={shard!r} needs mesh=, the devices over which the slots are split")
    if axis_name is not None:
        raise ValueError(
            f"shard={shard!r} needs an optimizer without axis_name, got {axis_name!r}: the loss is that of the whole "
            "batch, and its gradients are sums over all devices already"
        )
    return Split(mesh, shard)
