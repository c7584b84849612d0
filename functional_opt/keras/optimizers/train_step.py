"""TrainStep: loss, gradients and update as one compiled program over variables."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ...base import increment
from .. import tracing
from .step import donated_tree, pure_step, to_donate


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
        with opt._undone_on_error():
            tx, state = opt._prepare(plan.trained)
            values = opt._by_variable(plan.trained, to_donate([v._value for v in plan.trained]))
            others = [v._value for v in plan.others]
            out, values, opt._state, opt._iterations._value, written = plan.program(
                tx, donated_tree(state), values, others, *to_donate([opt._iterations._value]), batch
            )
        for v in plan.trained:
            v._value = values[opt._keys[id(v)]]
        for v, x in zip(plan.written, written, strict=True):
            v._value = x
        return out

    def _plan(self, *batch: Any) -> "_Plan":
        """Runs the loss once without computing, to see which variables it reads and assigns."""
        found: dict[str, dict] = {}

        def dry_run(*batch):
            out, found["reads"], found["writes"] = tracing.call(self._loss_fn, (), (), *batch)
            _check_loss(out[0] if self._has_aux else out)

        jax.eval_shape(dry_run, *batch)
        reads, writes = found["reads"], found["writes"]
        trained = self._optimizer._resolve(self._var_list, reads)
        others = [v for i, v in reads.items() if not any(v is t for t in trained)]
        written = [v for v, _ in writes.values() if not any(v is t for t in trained)]
        return _Plan(self, trained, others, written, [id(v) in reads for v in trained])


class _Plan:
    """For batches of one signature: the variables that take part, and the compiled program."""

    def __init__(self, step: TrainStep, trained: list, others: list, written: list, connected: Sequence[bool]):
        self.trained, self.others, self.written = trained, others, written
        opt, loss_fn, has_aux = step._optimizer, step._loss_fn, step._has_aux
        constraints = opt._constraints(trained)

        def program(tx, state, values, others, iterations, batch):
            keys = [opt._keys[id(v)] for v in trained]

            def loss(values):
                inputs = [*(values[key] for key in keys), *others]
                out, _, assigned = tracing.call(loss_fn, [*trained, *self.others], inputs, *batch)
                total = _check_loss(out[0] if has_aux else out)
                return total, (out, [assigned[id(v)][1] for v in written])

            grads, (out, new) = jax.grad(loss, has_aux=True)(values)
            pairs = [(grads[k] if read else None, v) for k, read, v in zip(keys, connected, trained, strict=True)]
            grads = opt._by_variable(trained, opt._gradients(pairs, trained))
            values, state = pure_step(tx, state, values, grads, iterations, constraints)
            return out, values, state, increment(iterations), new

        self.program = jax.jit(program, donate_argnums=(1, 2, 4))


def _check_loss(loss: Any) -> jax.Array:
    """The sum of a loss that is an array of floats; TypeError for anything else."""
    if not hasattr(loss, "dtype") or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(f"the loss must be an array of floats, got {loss!r}")
    return jnp.sum(loss)
