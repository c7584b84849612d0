"""TrainStep: loss, gradients and update as one compiled program over variables."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from ..variables import recording
from .program import Program
from .replicas import vary_over


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

    def __init__(self, optimizer: Any, loss_fn: Callable, var_list: Any, has_aux: bool, mesh: Mesh | None):
        axis = optimizer.axis_name
        if mesh is not None and not (isinstance(axis, str) and axis in mesh.axis_names):
            raise ValueError(f"mesh must have the optimizer's axis_name, which is {axis!r}, among {mesh.axis_names}")
        self._optimizer, self._loss_fn, self._var_list, self._has_aux = optimizer, loss_fn, var_list, has_aux
        # without axis types, so that arrays with any sharding are accepted, and jax.jit moves them
        self._mesh = None if mesh is None else Mesh(mesh.devices, mesh.axis_names)
        self._program = Program(self._step, self._on_devices if mesh is not None else lambda pure: pure)

    def __call__(self, *batch: Any) -> Any:
        return self._program(*batch)

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
