"""Training: minimize, gradients, and the step that applies them."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import tracing
from ..indexed_slices import IndexedSlices
from ..variable import Variable
from .by_variable import ByVariable, State, grow
from .donation import donated_tree, to_donate
from .slots import Slots
from .step import Numbers, Plan, at, jitted_step
from .train_step import TrainStep, check_loss, check_not_trained

log = logging.getLogger(__name__)

GradsAndVars = Sequence[tuple[Any, Variable]]


class Training(Slots):
    """The part of an optimizer that changes variables."""

    gradient_aggregator: Callable[[GradsAndVars], GradsAndVars] | None
    gradient_transformers: list[Callable[[GradsAndVars], GradsAndVars]]
    gradient_accumulation_steps: int | None
    use_ema: bool

    def _numbers(self) -> Numbers:
        """The transformations and other numbers of a step, with hyperparameters as they now are."""
        raise NotImplementedError

    def _plan(self, variables: Sequence[Variable]) -> Plan:
        """What a step of these variables is compiled for."""
        raise NotImplementedError

    def minimize(self, loss: Callable[[], Any], var_list: Any = None, grad_loss: Any = None, name: str | None = None):
        """One step downhill: `compute_gradients`, then `apply_gradients`. Returns `iterations`.

        Args:
            loss: a function of no arguments that reads the variables and returns an array; its sum is
                minimized. It may assign to variables that are not trained (running means).
            var_list: variables, or a function of no arguments that returns them, called after the loss;
                the trainable ones that the loss reads if None.
            grad_loss: the cotangent of the loss, of its shape; ones if None.
            name: a name for the operations in profiles.

        Raises RuntimeError for a loss that is an array already, ValueError for what is no variable.
        """
        pairs, assigned = self._differentiate(loss, var_list, grad_loss)
        iterations = self.apply_gradients(pairs, name=name)
        for v, x in assigned:
            v.assign(x)
        return iterations

    def compute_gradients(self, loss: Callable[[], Any], var_list: Any = None, grad_loss: Any = None) -> list[tuple]:
        """The (gradient, variable) pairs, None for a variable that is not read. Arguments as in `minimize`."""
        pairs, assigned = self._differentiate(loss, var_list, grad_loss)
        for v, x in assigned:
            v.assign(x)
        return pairs

    def _differentiate(self, loss: Callable[[], Any], var_list: Any, grad_loss: Any) -> tuple[list, list]:
        """The pairs, and what the loss assigns to variables that are not trained: (variable, value)."""
        if not callable(loss):
            raise RuntimeError(
                "loss must be a function of no arguments that reads the variables: an array no longer knows how it "
                f"was computed. Write minimize(lambda: ..., var_list). Received: {type(loss).__name__}"
            )
        with tracing.recording() as scope:
            if var_list is None or callable(var_list):
                loss()
            variables = self._resolve(var_list, scope.reads)
        seen: dict = {}

        def of(values):
            out, reads, assigned = tracing.call(loss, variables, values)
            check_loss(out)
            seen.update(reads=reads, written=[v for v, _ in assigned.values()])
            return jnp.asarray(out), [x for _, x in assigned.values()]

        out, vjp, new = jax.vjp(of, [v._value for v in variables], has_aux=True)
        check_not_trained(seen["written"], variables)
        cotangent = jnp.ones_like(out) if grad_loss is None else jnp.broadcast_to(jnp.asarray(grad_loss), out.shape)
        (grads,) = vjp(cotangent.astype(out.dtype))
        grads = [
            g if id(v) in seen["reads"] and g.dtype != jax.dtypes.float0 else None
            for g, v in zip(grads, variables, strict=True)
        ]
        return list(zip(grads, variables, strict=True)), list(zip(seen["written"], new, strict=True))

    def apply_gradients(
        self, grads_and_vars: Iterable[tuple], name: str | None = None, experimental_aggregate_gradients: bool = True
    ) -> Variable:
        """Updates the variables with their gradients and increments `iterations`, which it returns.

        Args:
            grads_and_vars: (gradient, variable) pairs. A variable whose gradient is None stays as it is, with
                a warning; one that is listed twice is updated twice.
            name: a name for the operations in profiles.
            experimental_aggregate_gradients: whether `gradient_aggregator` is called.

        Raises TypeError for what is no pair, ValueError if no gradient is there or one does not have the
        shape of its variable. Nothing is changed then.
        """
        pairs = _pairs(grads_and_vars)
        if not pairs:
            return self._iterations
        variables = [v for _, v in pairs]
        grads = self._gradients(pairs, variables, experimental_aggregate_gradients)
        todo = [(g, v) for g, v in zip(grads, variables, strict=True) if g is not None]
        with jax.named_scope(name or self._name):
            while todo:
                first, rest = {}, []
                for pair in todo:
                    if first.setdefault(id(pair[1]), pair) is not pair:
                        rest.append(pair)
                self._apply(list(first.values()), advance=not rest)
                todo = rest
        return self._iterations

    def make_train_step(self, loss_fn: Callable, var_list: Any = None, has_aux: bool = False) -> TrainStep:
        """A function of the batch that does loss, gradients and update as one compiled program.

        The fast way for a script: `step = opt.make_train_step(loss_fn); loss = step(images, labels)`.
        The loss function may read any variables, and assign to those that are not trained (running means).

        Args:
            loss_fn: a function of the batch that returns the loss, or with `has_aux` the pair of the loss
                and anything else; the step returns the same.
            var_list: as in `minimize`.
        """
        return TrainStep(self, loss_fn, var_list, has_aux)

    def build(self, var_list: Iterable[Variable]) -> None:
        """Makes the slots of the variables now, rather than at the first step."""
        with self._undone_on_error():
            _, self._state = self._prepare(list(var_list))

    # The step

    def _build_once(self, variables: Sequence[Variable]) -> None:
        """Calls a `build` of the user's own before the first step, as Keras 3 does."""
        if self._state is None and type(self).build is not Training.build:
            self.build(variables)

    def _gradients(self, pairs: list[tuple], variables: Sequence[Variable], aggregate: bool = True) -> list[Any]:
        """The gradients after the user's own functions, one for each variable, None where there is none."""
        present_pairs = [(g, v) for g, v in pairs if g is not None]
        if not present_pairs:
            raise ValueError(f"No gradients provided for any variable: {[v.name for v in variables]}.")
        if missing := [v.name for g, v in pairs if g is None]:
            log.warning("Gradients do not exist for variables %s when minimizing the loss.", missing)
        functions = [self.gradient_aggregator] if aggregate and self.gradient_aggregator else []
        for fn in (*functions, *self.gradient_transformers):
            present_pairs = _pairs(fn(present_pairs))
        for g, v in present_pairs:
            shape = (v.shape[:1] + g.values.shape[1:]) if isinstance(g, IndexedSlices) else np.shape(g)
            if shape != v.shape:
                raise ValueError(f"the gradient of {v.name} has shape {shape}, the variable has {v.shape}")
            if isinstance(g, IndexedSlices) and v.constraint is not None:
                raise RuntimeError(f"Cannot use a constraint function on a sparse variable: {v.name}")
        queues: dict[int, list] = {}
        for g, v in present_pairs:
            queues.setdefault(id(v), []).append(g)
        return [queues[id(v)].pop(0) if queues.get(id(v)) else None for v in variables]

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """A step is done whole or not at all: variables that are new to it are forgotten if it fails."""
        before = dict(self._variables), dict(self._keys), list(self._together), set(self._orphans)
        structure, pending = self._structure, self._pending_weights
        iterations = None if self._pending_weights is None else self._iterations._value
        try:
            yield
        except BaseException:
            self._variables, self._keys, self._together, self._orphans = before
            self._structure, self._pending_weights = structure, pending
            if iterations is not None:
                self._iterations._value = iterations
            raise

    def _prepare(self, variables: Sequence[Variable]) -> tuple[Numbers, State]:
        """The numbers of a step as they are now, and the state with slots for these variables."""
        new = [v for v in variables if id(v) not in self._keys]
        self._register(new)
        numbers, state = self._numbers(), self._state
        rule = at(0, numbers.rule)
        structure = jax.tree.structure(rule)  # what was reassigned may be another transformation, with other slots
        if state is None or new or structure != self._structure:
            self._structure = structure
            everything = self._by_variable(self._variables.values(), [v._value for v in self._variables.values()])
            accumulate = self.gradient_accumulation_steps is not None
            state = grow(rule, state, everything, average=self.use_ema, accumulate=accumulate)
            if self._pending_weights is not None:
                before, self._state = self._state, state
                try:
                    self._assign_weights(self._pending_weights)
                finally:
                    self._state = before
                self._pending_weights = None
        return numbers, state

    def _register(self, new: Sequence[Variable]) -> None:
        """Gives each variable the key under which the state has it: its path, after a number if that is taken."""
        made = []
        for v in new:
            key, n = v.path, 1
            if key not in self._orphans:
                while key in self._variables:
                    n += 1
                    key = f"{n}/{v.path}"
                made.append(key)
            self._orphans.discard(key)
            self._variables[key], self._keys[id(v)] = v, key
        if made:
            self._together.append(made)

    def _by_variable(self, variables: Iterable[Variable], values: Iterable[Any]) -> ByVariable:
        """Values of some variables, with None for all others that the state knows."""
        given = {self._keys[id(v)]: x for v, x in zip(variables, values, strict=True)}
        return ByVariable((key, given.get(key)) for key in self._variables)

    def _idle(self, variables: Iterable[Variable]) -> ByVariable:
        """The values of all variables but these."""
        busy = {id(v) for v in variables}
        return ByVariable((key, v._value) for key, v in self._variables.items() if id(v) not in busy)

    def _apply(self, pairs: list[tuple], advance: bool) -> None:
        """One compiled step for variables that differ."""
        variables = [v for _, v in pairs]
        self._build_once(variables)
        with self._undone_on_error():
            numbers, state = self._prepare(variables)
            grads = [g if isinstance(g, jax.Array | IndexedSlices) else jnp.asarray(g) for g, _ in pairs]
            values = self._by_variable(variables, to_donate([v._value for v in variables]))
            values, self._state, self._iterations._value = jitted_step(
                self._plan(variables),
                numbers,
                donated_tree(state),
                values,
                self._idle(variables),
                self._by_variable(variables, grads),
                *to_donate([self._iterations._value]),
                advance=advance,
            )
        for v in variables:
            v._value = values[self._keys[id(v)]]

    def _resolve(self, var_list: Any, reads: dict[int, Variable]) -> list[Variable]:
        """The variables of a `var_list`; by default the trainable ones among those that were read."""
        if var_list is None:
            variables = [v for v in reads.values() if v.trainable]
        else:
            given: Any = var_list() if callable(var_list) else var_list
            variables = list(given)
        for v in variables:
            if not isinstance(v, Variable):
                raise ValueError(f"var_list must hold variables, got {v!r}")
        if not variables:
            raise ValueError("No variables to minimize: var_list is empty, or the loss reads no trainable variable")
        return variables


def _pairs(grads_and_vars: Iterable[Any]) -> list[tuple]:
    pairs = list(grads_and_vars)
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise TypeError(f"grads_and_vars must hold (gradient, variable) pairs, got {pair!r}")
        if not isinstance(pair[1], Variable):
            raise TypeError(f"the second of each pair must be a Variable, got {pair[1]!r}")
    return [(g, v) for g, v in pairs]
