"""Training: methods to minimize a loss, and to compute and apply gradients."""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..engine import eager, transaction
from ..engine.engine import Engine, undone_on_error
from ..engine.packing import Group
from ..engine.program import Program
from ..engine.replicas import AxisName, summed, vary_over
from ..engine.several import divided
from ..engine.stateless import stateless
from ..engine.train_step import Loss, TrainStep
from ..variables import gradients, recording
from ..variables.foreign import as_variable, is_variable, unwrap
from ..variables.indexed_slices import IndexedSlices
from ..variables.recording import BUSY
from ..variables.variable import Variable
from . import graph_mode
from .clips import Clips, clipped, clipped_together, clips_with
from .hooks import SubclassHooks
from .overrides import STAGES, overrides
from .pairs import GradsAndVars, as_pairs, check_gradient

log = logging.getLogger(__name__)


class Training(SubclassHooks):
    """The part of an optimizer that handles losses and gradients.

    The public methods call one another, and the protected ones that OptimizerV2 has, through `self`: what a script
    overrides is what runs, in compiled steps too.
    """

    GATE_NONE, GATE_OP, GATE_GRAPH = graph_mode.GATE_NONE, graph_mode.GATE_OP, graph_mode.GATE_GRAPH

    _engine: Engine
    _last: Group | None  # the variables of the last step, if the next one may be taken in the same way
    _programs: dict[Any, Program]  # the compiled steps of an optimizer with code of the user's, by its variables
    dialect: str
    gradient_aggregator: Callable[[GradsAndVars], GradsAndVars] | None
    gradient_transformers: list[Callable[[GradsAndVars], GradsAndVars]]
    axis_name: AxisName | None
    clipvalue: Any
    clipnorm: Any
    global_clipnorm: Any
    loss_scale_factor: float | None

    # Losses

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
            var_list: variables in any nesting, or a function of no arguments that returns them, called after the
                loss. If None, the trainable variables that the loss reads.
            grad_loss: the cotangent of the loss, of its shape; ones if None.
            name: a name for the operations in profiles.
            tape: must be None: JAX differentiates functions.
            global_step: as in `apply_gradients`.
            how: gate_gradients, aggregation_method, colocate_gradients_with_ops, as in `compute_gradients`.

        Raises RuntimeError if the loss is already an array, ValueError if `var_list` holds anything but variables.
        """
        if tape is not None:
            raise TypeError("tape must be None: JAX has no tapes; give the loss as a function of no arguments")
        if not isinstance(loss, Loss):
            gradients.check_callable(loss)
            loss = Loss(loss)
        more = how if grad_loss is None else how | {"grad_loss": grad_loss}
        pairs = self.compute_gradients(loss, var_list, **more)
        given = {"name": name, "global_step": global_step}
        given = {key: x for key, x in given.items() if x is not None}
        return transaction.followed_by(
            lambda: self.apply_gradients(pairs, **given), lambda: gradients.assign_all(loss.written)
        )

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
        graph_mode.check(gate_gradients, aggregation_method)
        pairs = self._compute_gradients(loss, var_list, grad_loss)
        grads = graph_mode.gated([g for g, _ in pairs], gate_gradients)
        if colocate_gradients_with_ops:
            grads = graph_mode.colocated(grads, [as_variable(v) for _, v in pairs])
        return [(g, v) for g, (_, v) in zip(grads, pairs, strict=True)]

    def _compute_gradients(self, loss: Callable[[], Any], var_list: Any, grad_loss: Any = None, tape: None = None):
        """Returns (gradient, variable) pairs, as OptimizerV2's method of that name. May be extended."""
        return self._get_gradients(tape, loss, var_list, grad_loss)

    def _get_gradients(
        self, tape: None, loss: Callable[[], Any], var_list: Any, grad_loss: Any = None
    ) -> list[tuple]:
        """Differentiates the loss. OptimizerV2's hook; `loss` is a function here, where TensorFlow has a tape."""
        gradients.check_callable(loss)
        if overrides(type(self), "get_gradients"):
            variables = gradients.resolve(var_list, recording.call(loss, (), ()).reads)
            own = [unwrap(v) for v in variables]
            return list(zip(self.get_gradients(loss, own), own, strict=True))
        return self._differentiated(loss, var_list, grad_loss)

    def _differentiated(self, loss: Callable[[], Any], var_list: Any, grad_loss: Any) -> list[tuple]:
        fn, loss_of = (loss.fn, loss.of) if isinstance(loss, Loss) else (loss, lambda out: out)
        done = gradients.differentiate(
            fn,
            var_list,
            grad_loss,
            loss_of=lambda out: self._transform_loss(self.scale_loss(loss_of(out))),
            value_of=lambda v: vary_over(v._value, self.axis_name),
        )
        if isinstance(loss, Loss):
            loss.note(done.out, done.written)
        else:
            gradients.assign_all(done.written)
        return [(g, unwrap(v)) for g, v in zip(done.grads, done.variables, strict=True)]

    def _transform_loss(self, loss: Any) -> Any:
        """Returns the loss to differentiate, an array. OptimizerV2's hook; may be overridden."""
        return loss

    def get_gradients(self, loss: Callable[[], Any], params: Any) -> list[Any]:
        """Returns only the gradients. Raises ValueError for a variable not read, TypeError if loss is an array."""
        if not callable(loss):
            raise TypeError(
                f"loss must be a function of no arguments that reads the variables, got {type(loss).__name__}"
            )
        variables = jax.tree.leaves(params, is_leaf=is_variable)
        if overrides(type(self), "get_gradients"):  # which calls this one
            pairs = self._differentiated(loss, variables, None)
        else:
            pairs = self.compute_gradients(loss, variables)
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

    def scale_loss(self, loss: Any) -> Any:
        """Multiplies the loss by the factor, if any, that gradients are divided by."""
        raise NotImplementedError

    def make_train_step(
        self,
        loss_fn: Callable,
        var_list: Any = None,
        has_aux: bool = False,
        mesh: jax.sharding.Mesh | None = None,
        shard: str | None = None,
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
                the mean over the devices, one of integers the largest.
            shard: an axis of the mesh over which slots are kept in pieces, as by `functional_opt.shard`. The batch is
                split over it too, but the loss is that of the whole batch, as on one device, and so are the results.
                The optimizer must have no `axis_name`.

        Raises ValueError for a mesh without that axis.
        """
        return TrainStep(self, loss_fn, var_list, has_aux, mesh, shard)

    # Gradients

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
        pairs, aggregate = list(grads_and_vars), experimental_aggregate_gradients
        if pairs and global_step is None:
            self._apply_named(name, pairs, aggregate)
        elif pairs:
            count, new = as_variable(global_step), []

            def increment() -> None:
                if not new:
                    new.append(count.value + 1)
                count.assign(new[0])

            with BUSY.lock:
                transaction.followed_by(lambda: self._apply_named(name, pairs, aggregate), increment)
        return graph_mode.Operation(self._iterations)

    def _apply_named(self, name: str | None, pairs: list[Any], aggregate: bool) -> None:
        with jax.named_scope(name or self._name):
            if overrides(type(self), "apply"):
                self.apply(*map(list, zip(*as_pairs(pairs), strict=True)))
            else:
                self._apply_pairs(pairs, aggregate)

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Applies gradients, in Keras 3's form: gradients and variables are separate lists.

        Args:
            grads: one for each variable; None leaves a variable unchanged.
            trainable_variables: the variables; those given to `build` if None.

        Raises ValueError if the numbers of gradients and variables differ.
        """
        variables = list(self._engine.known() if trainable_variables is None else trainable_variables)
        grads = list(grads)
        if len(grads) != len(variables):
            hint = "" if self.built else ": call optimizer.build(variables) first, or pass trainable_variables"
            raise ValueError(f"there are {len(grads)} gradients for {len(variables)} variables{hint}")
        if overrides(type(self), "apply_gradients") and not overrides(type(self), "apply"):
            self.apply_gradients(list(zip(grads, variables, strict=True)))
        elif grads:
            self._apply_pairs(list(zip(grads, variables, strict=True)), True)

    def _apply_pairs(self, pairs: list[Any], aggregate: bool) -> None:
        """Takes a step: in the way of the last one if it is like that, else by all stages."""
        last = self._last if self._may_repeat(aggregate) else None
        if last is not None and eager.repeat(self._engine, last, pairs):
            return
        pairs = as_pairs(pairs)
        # as_pairs wraps other libraries' variables, so that the step may be like the last one after all
        if last is not None and eager.repeat(self._engine, last, pairs):
            return
        with BUSY.lock:
            variables = [v for _, v in pairs]
            self._step(self._gradients(pairs, variables, aggregate), variables)

    def _may_repeat(self, aggregate: bool) -> bool:
        """Returns whether gradients go into the compiled step as they are."""
        summed_here = aggregate and (self.gradient_aggregator or self.axis_name is not None)
        return not (summed_here or self.gradient_transformers or overrides(type(self), *STAGES))

    def _gradients(self, pairs: list[tuple], variables: Sequence[Variable], aggregate: bool = True) -> list[Any]:
        """Returns the gradients after the user's functions, one for each variable, None for a missing one."""
        present = [(g, unwrap(v)) for g, v in pairs if g is not None]
        if not present:
            raise ValueError(f"No gradients provided for any variable: {[v.name for v in variables]}.")
        if missing := [v.name for g, v in pairs if g is None]:
            log.warning("Gradients do not exist for variables %s when minimizing the loss.", missing)
        if aggregate:
            present = self._aggregate_gradients(self._transform_unaggregated_gradients(present))
        present = as_pairs(self._transform_gradients(list(present)))
        if len({id(v) for _, v in present}) < len(present):
            bound, factor = recording.depends_on(lambda: (self.global_clipnorm, self.loss_scale_factor))
            if bound is not None:  # by the joint norm, as each round of the step would only see a part of it
                grads = clipped_together([g for g, _ in present], bound * (factor or 1.0))
                present = [(g, v) for g, (_, v) in zip(grads, present, strict=True)]
        queues: dict[int, list] = {}
        for g, v in present:
            check_gradient(g, v)
            queues.setdefault(id(v), []).append(g)
        return [queues[id(v)].pop(0) if queues.get(id(v)) else None for v in variables]

    def _transform_unaggregated_gradients(self, grads_and_vars: GradsAndVars) -> GradsAndVars:
        """Returns the pairs before gradients of several replicas are summed. OptimizerV2's hook."""
        return grads_and_vars

    def _aggregate_gradients(self, grads_and_vars: GradsAndVars) -> GradsAndVars:
        """Sums gradients of several replicas. OptimizerV2's hook."""
        if aggregator := recording.depends_on(lambda: self.gradient_aggregator):
            return aggregator(grads_and_vars)
        if self.axis_name is None:
            return grads_and_vars
        sums = summed([g for g, _ in grads_and_vars], self.axis_name)
        return list(zip(sums, (v for _, v in grads_and_vars), strict=True))

    def _transform_gradients(self, grads_and_vars: GradsAndVars) -> GradsAndVars:
        """Clips gradients and calls `gradient_transformers`. OptimizerV2's hook."""
        if self._clips_here:
            grads, variables = zip(*grads_and_vars, strict=True)
            if (factor := recording.depends_on(lambda: self.loss_scale_factor)) is not None:
                grads = divided(list(grads), factor)
            grads_and_vars = list(zip(self._clip_gradients(list(grads)), variables, strict=True))
        for fn in recording.depends_on(lambda: tuple(self.gradient_transformers)):
            grads_and_vars = fn(list(grads_and_vars))
        return grads_and_vars

    def _clip_gradients(self, grads: Sequence[Any]) -> list[Any]:
        """Clips gradients as the optimizer is set to. OptimizerV2's hook."""
        return clipped(grads, recording.depends_on(self._clips))

    def _clips(self) -> Clips:
        return clips_with(self.clipvalue, self.clipnorm, self.global_clipnorm)

    @property
    def _clips_here(self) -> bool:
        """True if gradients are clipped before the compiled step, because the user's code comes before or after."""
        return bool(overrides(type(self), "_transform_gradients", "_clip_gradients"))

    # Steps

    def _step(self, grads: Sequence[Any], variables: Sequence[Variable]) -> None:
        """Takes a step with gradients that have passed all stages."""
        self._build_once([v for g, v in zip(grads, variables, strict=True) if g is not None])
        if self._runs_code and not recording.active():
            key = tuple(map(id, variables))
            if key not in self._programs:
                self._programs[key] = Program(functools.partial(self._take_step, variables=tuple(variables)))
            grads = [g if g is None or isinstance(g, IndexedSlices) else jnp.asarray(g) for g in grads]
            self._programs[key](list(grads))
        else:
            self._last = self._take_step(grads, variables)

    @property
    def _differentiates(self) -> bool:
        """True if code of the user's may differentiate the loss in a way of its own."""
        return bool(overrides(type(self), "minimize", "compute_gradients", "_compute_gradients", "_get_gradients"))

    def _take_step(self, grads: Sequence[Any], variables: Sequence[Variable]) -> Group | None:
        return eager.apply(self._engine, grads, variables)

    @property
    def _runs_code(self) -> bool:
        """True if a step runs code of the user's that reads and assigns variables."""
        return self._is_custom

    def build(self, var_list: Iterable[Any]) -> None:
        """Makes the slots of the variables now, rather than at the first step."""
        with BUSY.lock:
            undone_on_error(self._engine, lambda: self._engine.prepare([as_variable(v) for v in var_list]))

    def _build_once(self, variables: Sequence[Variable]) -> None:
        """Calls `build` before the first step if the user overrides it, as Keras 3 does."""
        if not self._engine.built and overrides(type(self), "build"):
            with recording.paused():
                self.build([unwrap(v) for v in variables])

    def stateless_apply(
        self, optimizer_variables: Sequence[Any], grads: Sequence[Any], trainable_variables: Sequence[Any]
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Applies gradients as a pure function, for use in `jax.jit`. Returns new values of both kinds of variables.

        Args:
            optimizer_variables: values in the order of `variables`.
            grads: one for each variable given to `build`, in that order; None leaves a variable unchanged.
            trainable_variables: the values of these variables.

        Raises ValueError if the optimizer is not built, or if a list has the wrong length.
        """
        own, variables = self.variables, self._engine.known()
        if not self._engine.built:
            raise ValueError("the optimizer is not built; call optimizer.build(variables) first")
        return stateless(self.apply, own, variables, optimizer_variables, grads, trainable_variables)

    @property
    def variables(self) -> list[Variable]:
        raise NotImplementedError
