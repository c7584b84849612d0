"""TrainStep: loss, gradients and update as one compiled program over variables."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from ..variables import gradients, recording
from .donation import donated_tree, to_donate


class TrainStep:
    """A function of the batch that does one training step. See `Optimizer.make_train_step`, which makes it."""

    def __init__(self, optimizer: Any, loss_fn: Callable, var_list: Any, has_aux: bool, mesh: Mesh | None):
        axis = optimizer.axis_name
        if mesh is not None and not (isinstance(axis, str) and axis in mesh.axis_names):
            raise ValueError(f"mesh must have the optimizer's axis_name, which is {axis!r}, among {mesh.axis_names}")
        self._optimizer, self._loss_fn, self._var_list, self._has_aux = optimizer, loss_fn, var_list, has_aux
        # without axis types, so that arrays with any sharding are accepted, and jax.jit moves them
        self._mesh = None if mesh is None else Mesh(mesh.devices, mesh.axis_names)
        self._plans: dict[Any, _Plan] = {}

    def __call__(self, *batch: Any) -> Any:
        opt, plan = self._optimizer, self._plan_of(batch)
        opt._build_once(plan.trained)
        with opt._undone_on_error():
            out, values, state, clock, written = plan.program(*self._arguments(plan), *batch)
            opt._store(state, clock)
        for v, x in zip(plan.trained, opt._listed(plan.trained, values), strict=True):
            v._value = x
        for v, x in zip(plan.written, written, strict=True):
            v._value = x
        return out

    def lower(self, *batch: Any) -> jax.stages.Lowered:
        """Lowers the program for such a batch, as `jax.jit(...).lower`, to inspect its code, cost and memory."""
        plan = self._plan_of(batch)
        self._optimizer.build(plan.trained)
        return plan.program.lower(*self._arguments(plan), *batch)

    def _plan_of(self, batch: tuple) -> "_Plan":
        # the variables that the loss reads may depend on the shapes of the batch, as its compilation does
        shapes = tuple((jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(batch))
        signature = jax.tree.structure(batch), shapes
        plan = self._plans.get(signature)
        if plan is None:
            plan = self._plans[signature] = self._plan(*batch)
        return plan

    def _arguments(self, plan: "_Plan") -> tuple[Any, ...]:
        opt, trained = self._optimizer, plan.trained
        numbers = opt._ready(trained)
        others = [v._value for v in plan.others]  # read before anything is donated: they may be views of the state
        values = opt._by_variable(trained, to_donate([v._value for v in trained]))
        return numbers, values, donated_tree(opt._state), opt._clock(), opt._idle(trained), others

    def _plan(self, *batch: Any) -> "_Plan":
        """Traces the loss once, without computing it, to find which variables it reads and assigns."""
        found: dict[str, Any] = {}

        def dry_run(*batch):
            done = recording.call(self._loss_fn, (), (), *batch)
            gradients.check_loss(self._loss_of(done.out))
            trained = self._optimizer._resolve(self._var_list, done.reads)
            floats = [jnp.issubdtype(v.dtype, jnp.inexact) for v in trained]
            pairs = [(jnp.zeros_like(v._value) if f else None, v) for f, v in zip(floats, trained, strict=True)]
            more = recording.call(self._optimizer._gradients, (), (), pairs, trained).reads
            found.update(reads=done.reads, more=more, written=[v for v, _ in done.written.values()], trained=trained)
            found.update(shapes={i: tuple(r.shape for r in rows) for i, rows in done.rows.items()})

        jaxpr = jax.make_jaxpr(self._on_devices(dry_run, PartitionSpec()))(*batch)
        reads, trained, written = found["reads"], found["trained"], found["written"]
        gradients.check_made_before(reads.values())
        gradients.check_not_trained(written, trained)
        ours = {id(v) for v in trained}
        others = [v for i, v in (reads | found["more"]).items() if i not in ours]
        shapes = {i: s for i, s in found["shapes"].items() if i in ours}
        return _Plan(self, trained, others, written, shapes, donate=not _calls_back(jaxpr.jaxpr))

    def _loss_of(self, out: Any) -> Any:
        return out[0] if self._has_aux else out

    def _on_devices(self, fn: Callable, out_specs: Any, replicated: int = 0) -> Callable:
        """Returns the function mapped over the mesh. Arguments after the replicated ones are split as a batch."""
        if self._mesh is None:
            return fn
        split = PartitionSpec(self._optimizer.axis_name)

        def run(*args):
            batch = jax.tree.map(lambda x: split if jnp.ndim(x) else PartitionSpec(), args[replicated:])
            in_specs = (*[PartitionSpec()] * replicated, *batch)
            return jax.shard_map(fn, mesh=self._mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*args)

        return run


class _Plan:
    """The variables that take part, and the compiled program, for batches of one signature."""

    def __init__(self, step: TrainStep, trained: list, others: list, written: list, shapes: dict, donate: bool):
        self.trained, self.others, self.written = trained, others, written
        opt, on_mesh = step._optimizer, step._mesh is not None

        def program(numbers, values, state, clock, idle, others, *batch):
            inputs = opt._listed(trained, values)
            scale = opt._loss_scale(numbers, state)

            def loss_of(out):
                loss = step._loss_of(out)
                return loss if scale is None else loss * scale

            done = gradients.forward(step._loss_fn, batch, trained, inputs, shapes, self.others, others, loss_of)
            pairs = list(zip(done.gradients(), trained, strict=True))
            variables = [*trained, *self.others]
            grads = recording.call(opt._gradients, variables, [*inputs, *others], pairs, trained).out
            values, state, clock = opt._plan(trained)(
                numbers, values, state, clock, idle, opt._by_variable(trained, grads)
            )
            out, new = done.out, [x for _, x in done.written]
            if on_mesh:
                out = jax.tree.map(lambda x: jnp.asarray(x)[None], out)
                new = [jax.lax.pmean(x, opt.axis_name).astype(x.dtype) for x in new]
            return out, values, state, clock, new

        specs = PartitionSpec(opt.axis_name), *[PartitionSpec()] * 4
        program = step._on_devices(program, specs, replicated=6)
        self.program = jax.jit(program, donate_argnums=(1, 2) if donate else ())


def _calls_back(jaxpr: Any) -> bool:
    """Returns whether a program calls Python, where an exception would leave donated variables empty."""
    inner = [x for eqn in jaxpr.eqns for x in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr)]
    called = any("callback" in eqn.primitive.name for eqn in jaxpr.eqns)
    return called or any(_calls_back(getattr(x, "jaxpr", x)) for x in inner if _is_jaxpr(x))


def _is_jaxpr(x: Any) -> bool:
    return hasattr(getattr(x, "jaxpr", x), "eqns")
