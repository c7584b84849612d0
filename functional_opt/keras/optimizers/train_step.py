"""TrainStep: loss, gradients and update as one compiled program over variables."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import core

from ...base import increment
from .. import tracing
from ..variable import Variable
from .donation import donated_tree, to_donate
from .step import pure_step


class TrainStep:
    """A function of the batch that trains: made by `Optimizer.make_train_step`, which says what it does."""

    def __init__(self, optimizer: Any, loss_fn: Callable, var_list: Any, has_aux: bool):
        self._optimizer, self._loss_fn, self._var_list, self._has_aux = optimizer, loss_fn, var_list, has_aux
        self._plans: dict[Any, _Plan] = {}

    def __call__(self, *batch: Any) -> Any:
        opt = self._optimizer
        # what the loss reads may depend on the shapes of the batch, as its compilation does
        shapes = tuple((jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(batch))
        signature = jax.tree.structure(batch), shapes
        plan = self._plans.get(signature)
        if plan is None:
            plan = self._plans[signature] = self._plan(*batch)
        opt._build_once(plan.trained)
        with opt._undone_on_error():
            numbers, state = opt._prepare(plan.trained)
            values = opt._by_variable(plan.trained, to_donate([v._value for v in plan.trained]))
            others = [v._value for v in plan.others]
            out, values, opt._state, opt._iterations._value, written = plan.program(
                numbers,
                donated_tree(state),
                values,
                opt._idle(plan.trained),
                others,
                *to_donate([opt._iterations._value]),
                batch,
            )
        for v in plan.trained:
            v._value = values[opt._keys[id(v)]]
        for v, x in zip(plan.written, written, strict=True):
            v._value = x
        return out

    def _plan(self, *batch: Any) -> "_Plan":
        """Runs the loss once without computing, to see which variables it reads and assigns."""
        found: dict[str, Any] = {}

        def dry_run(*batch):
            out, reads, writes = tracing.call(self._loss_fn, (), (), *batch)
            check_loss(out[0] if self._has_aux else out)
            trained = self._optimizer._resolve(self._var_list, reads)
            pairs = [(jnp.zeros_like(v._value), v) for v in trained]
            _, more, _ = tracing.call(self._optimizer._gradients, (), (), pairs, trained)
            found.update(reads=reads, more=more, written=[v for v, _ in writes.values()], trained=trained)

        jax.eval_shape(dry_run, *batch)
        reads, trained, written = found["reads"], found["trained"], found["written"]
        check_made_before(reads.values())
        check_not_trained(written, trained)
        ours = {id(v) for v in trained}
        others = [v for i, v in (reads | found["more"]).items() if i not in ours]
        return _Plan(self, trained, others, written, [id(v) in reads for v in trained])


class _Plan:
    """For batches of one signature: the variables that take part, and the compiled program."""

    def __init__(self, step: TrainStep, trained: list, others: list, written: list, connected: Sequence[bool]):
        self.trained, self.others, self.written = trained, others, written
        opt, loss_fn, has_aux = step._optimizer, step._loss_fn, step._has_aux

        def program(numbers, state, values, idle, others, iterations, batch):
            keys = [opt._keys[id(v)] for v in trained]

            def call(fn, values, *args):
                inputs = [*(values[key] for key in keys), *others]
                return tracing.call(fn, [*trained, *self.others], inputs, *args)

            def loss(values):
                out, _, assigned = call(loss_fn, values, *batch)
                total = check_loss(out[0] if has_aux else out)
                return total, (out, [assigned[id(v)][1] for v in written])

            grads, (out, new) = jax.grad(loss, has_aux=True, allow_int=True)(values)
            pairs = [
                (grads[key] if read and grads[key].dtype != jax.dtypes.float0 else None, v)
                for key, read, v in zip(keys, connected, trained, strict=True)
            ]
            grads, _, _ = call(opt._gradients, values, pairs, trained)
            grads, plan = opt._by_variable(trained, grads), opt._plan(trained)
            values, state = pure_step(plan, numbers, state, values, idle, grads, iterations)
            return out, values, state, increment(iterations), new

        self.program = jax.jit(program, donate_argnums=(1, 2, 5))


def check_made_before(variables: Iterable[Variable]) -> None:
    """Refuses variables that the loss made itself while it was traced: what they hold cannot be used after."""
    for v in variables:
        if isinstance(v._value, core.Tracer):
            raise RuntimeError(
                f"{v.name} was made in the loss; make it before, or call the loss once before the step"
            )


def check_not_trained(written: Iterable[Variable], trained: Sequence[Variable]) -> None:
    """Refuses a loss that assigns to what it is differentiated by."""
    if both := [v.name for v in written if any(v is t for t in trained)]:
        raise ValueError(f"the loss assigns to {both}, which are being trained; assign to them after the step")


def check_loss(loss: Any) -> jax.Array:
    """The sum of a loss that is an array of floats; TypeError for anything else."""
    if not hasattr(loss, "dtype") or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(f"the loss must be an array of floats, got {loss!r}")
    return jnp.sum(loss)
