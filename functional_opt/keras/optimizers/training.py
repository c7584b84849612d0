"""Training: methods to minimize a loss, and to compute and apply gradients."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from ..variables import gradients
from ..variables.foreign import all_ours, as_variable, is_variable, unwrap
from ..variables.variable import Variable, trainable_variables
from . import graph_mode
from ..engine.replicas import vary_over
from .stepping import Stepping, as_pairs
from ..engine.train_step import TrainStep


class Training(Stepping):
    """The part of an optimizer that handles losses and gradients."""

    GATE_NONE, GATE_OP, GATE_GRAPH = graph_mode.GATE_NONE, graph_mode.GATE_OP, graph_mode.GATE_GRAPH

    def minimize(
        self,
        loss: Callable[[], Any],
        var_list: Any = None,
        grad_loss: Any = None,
        name: str | None = None,
        tape: None = None,
        *,
        global_step: Any = None,
        **how: Any,
    ) -> graph_mode.Operation:
        """Takes one step: calls `compute_gradients`, then `apply_gradients`, whose result it returns.

        Args:
            loss: a function of no arguments that reads the variables and returns an array; its sum, times the
                loss scale if there is one, is minimized. It may assign to variables that are not trained (such as
                running means). It is called once, and again if it makes the variables itself or reads rows of
                other shapes than before.
            var_list: variables, or a function of no arguments that returns them, called after the loss. If
                None, the trainable variables that the loss reads.
            grad_loss: the cotangent of the loss, of its shape; ones if None.
            name: a name for the operations in profiles.
            tape: must be None: JAX differentiates functions.
            global_step: as in `apply_gradients`.
            how: gate_gradients, aggregation_method, colocate_gradients_with_ops, as in `compute_gradients`.

        Raises RuntimeError if the loss is already an array, ValueError if `var_list` holds anything but variables.
        """
        if tape is not None:
            raise TypeError("tape must be None: JAX has no tapes; give the loss as a function of no arguments")
        pairs, assigned = self._differentiate(loss, var_list, grad_loss, **how)
        operation = self.apply_gradients(pairs, name=name, global_step=global_step)
        for v, x in assigned:
            v.assign(x)
        return operation

    def compute_gradients(
        self,
        loss: Callable[[], Any],
        var_list: Any = None,
        grad_loss: Any = None,
        *,
        gate_gradients: int = graph_mode.GATE_OP,
        aggregation_method: int | None = None,
        colocate_gradients_with_ops: bool = False,
    ) -> list[tuple]:
        """Returns (gradient, variable) pairs: None for a variable not read, IndexedSlices after a `sparse_read`.

        Args:
            loss, var_list, grad_loss: as in `minimize`.
            gate_gradients: GATE_NONE, GATE_OP or GATE_GRAPH: within `jax.jit`, whether each gradient, or all of
                them, must be computed before one is used.
            aggregation_method: a value of `AggregationMethod`; they all mean plain addition.
            colocate_gradients_with_ops: whether each gradient is sharded as its variable is.

        Raises what `minimize` does, and ValueError for an unknown gate or method.
        """
        pairs, assigned = self._differentiate(
            loss,
            var_list,
            grad_loss,
            gate_gradients=gate_gradients,
            aggregation_method=aggregation_method,
            colocate_gradients_with_ops=colocate_gradients_with_ops,
        )
        for v, x in assigned:
            v.assign(x)
        return pairs

    def get_gradients(self, loss: Callable[[], Any], params: Any) -> list[Any]:
        """Returns only the gradients. Raises ValueError for a variable not read, TypeError if loss is an array."""
        if not callable(loss):
            raise TypeError(
                f"loss must be a function of no arguments that reads the variables, got {type(loss).__name__}"
            )
        pairs = self.compute_gradients(loss, jax.tree.leaves(params, is_leaf=is_variable))
        for g, v in pairs:
            if g is None:
                name = as_variable(v).name
                raise ValueError(
                    f"Variable {name} has `None` for gradient. Please make sure that the loss reads it, and "
                    "that all of its operations have a gradient (argmax and round have none)."
                )
        return [g for g, _ in pairs]

    def get_updates(self, loss: Callable[[], Any], params: Any) -> list[graph_mode.Operation]:
        """Takes one step, as `minimize` does. Returns a list with the result of `apply_gradients`.

        Raises what `get_gradients` does.
        """
        variables = jax.tree.leaves(params, is_leaf=is_variable)
        return [self.apply_gradients(zip(self.get_gradients(loss, variables), variables, strict=True))]

    def _differentiate(
        self,
        loss: Callable[[], Any],
        var_list: Any,
        grad_loss: Any,
        gate_gradients: int = graph_mode.GATE_OP,
        aggregation_method: int | None = None,
        colocate_gradients_with_ops: bool = False,
    ) -> tuple[list, list]:
        """Returns the pairs, and (variable, value) for the loss's assignments to variables that are not trained."""
        graph_mode.check(gate_gradients, aggregation_method)
        if not callable(loss):
            raise RuntimeError(
                "loss must be a function of no arguments that reads the variables: an array no longer knows how it "
                f"was computed. Write minimize(lambda: ..., var_list). Received: {type(loss).__name__}"
            )
        named = None if var_list is None or callable(var_list) else self._resolve(var_list, {})
        tried = trainable_variables() if named is None else named
        for _ in range(3):  # running the loss shows which variables it reads, and which by row
            shapes = {id(v): v._row_shapes for v in tried if v._row_shapes}
            values = [self._local(v) for v in tried]
            done = gradients.forward(loss, (), tried, values, shapes, loss_of=self.scale_loss)
            variables = self._resolve(var_list, done.reads) if named is None else named
            for v in variables:
                v._row_shapes = done.shapes.get(id(v), ())
            there = {id(v) for v in tried}
            if all(id(v) in there and v._row_shapes == shapes.get(id(v), ()) for v in variables):
                break
            tried = variables
        else:
            raise RuntimeError("the loss reads other variables, or rows of another shape, each time it is called")
        gradients.check_not_trained([v for v, _ in done.written], variables)
        by_id = dict(zip((id(v) for v in tried), done.gradients(grad_loss), strict=True))
        grads = graph_mode.gated([by_id[id(v)] for v in variables], gate_gradients)
        if colocate_gradients_with_ops:
            grads = graph_mode.colocated(grads, variables)
        return [(g, unwrap(v)) for g, v in zip(grads, variables, strict=True)], done.written

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple],
        name: str | None = None,
        experimental_aggregate_gradients: bool = True,
        *,
        global_step: Any = None,
    ) -> graph_mode.Operation:
        """Updates the variables with their gradients and increments `iterations`, which it returns.

        Args:
            grads_and_vars: (gradient, variable) pairs. A variable whose gradient is None stays unchanged,
                with a warning; one that is listed twice is updated twice.
            name: a name for the operations in profiles.
            experimental_aggregate_gradients: whether gradients of several replicas are summed, by
                `gradient_aggregator` or over `axis_name`.
            global_step: a variable that is incremented too.

        Raises TypeError for an item that is not a pair, ValueError if all gradients are None or one does not
        have the shape of its variable, RuntimeError outside of the axis `axis_name`. Nothing is changed then.
        """
        pairs, global_step = list(grads_and_vars), None if global_step is None else as_variable(global_step)
        if not pairs:
            return self._operation
        with jax.named_scope(name or self._name):
            if not self._repeat(pairs, experimental_aggregate_gradients):
                pairs = as_pairs(pairs)
                if not self._repeat(pairs, experimental_aggregate_gradients):  # as_pairs wraps other libraries'
                    variables = [v for _, v in pairs]
                    self._apply(self._gradients(pairs, variables, experimental_aggregate_gradients), variables)
        if global_step is not None:
            global_step.assign_add(1)
        return self._operation

    def make_train_step(
        self, loss_fn: Callable, var_list: Any = None, has_aux: bool = False, mesh: jax.sharding.Mesh | None = None
    ) -> TrainStep:
        """Returns a function of the batch that does loss, gradients and update as one compiled program.

        This is the fast way for a script: `step = opt.make_train_step(loss_fn); loss = step(images, labels)`.
        The loss function may read any variables, and assign to those that are not trained
        (such as running means).

        Args:
            loss_fn: a function of the batch that returns the loss, or with `has_aux` the pair of the loss
                and anything else; the step returns the same.
            var_list: as in `minimize`.
            mesh: a mesh with the axis `axis_name`. Arrays of the batch are split over that axis along their first
                dimension, each device computes the loss of its part, and the gradients are summed. The results
                then have a first dimension with one entry per device. A variable that the loss assigns to gets
                the mean over the devices.

        Raises ValueError for a mesh without that axis.
        """
        return TrainStep(self, loss_fn, var_list, has_aux, mesh)

    def scale_loss(self, loss: Any) -> Any:
        """Multiplies the loss by the factor, if any, that gradients are divided by."""
        raise NotImplementedError

    def _local(self, v: Variable) -> jax.Array:
        """Returns the value to differentiate with respect to: in replicas, the replica's own."""
        return vary_over(v._value, self.axis_name)

    def _resolve(self, var_list: Any, reads: dict[int, Variable]) -> list[Variable]:
        """Returns the variables of a `var_list`; by default, the trainable ones among those that were read."""
        if var_list is None:
            variables = [v for v in reads.values() if v.trainable]
        else:
            given: Any = var_list() if callable(var_list) else var_list
            given = list(given)
            if others := [x for x in given if not is_variable(x)]:
                raise ValueError(f"var_list must hold variables, got {others[0]!r}")
            variables = all_ours(given)
        if not variables:
            raise ValueError("No variables to minimize: var_list is empty, or the loss reads no trainable variable")
        return variables
