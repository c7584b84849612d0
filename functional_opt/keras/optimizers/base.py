"""Optimizer: Keras's stateful API over a pure transformation. It knows no algorithm."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...base import GradientTransformation
from ...transforms.chain import chain
from ...transforms.clip import clip, clip_by_global_norm, clip_by_norm
from .. import tracing
from ..variable import Variable
from . import schedules
from .hyper import Hyperparameters, decayed, present
from .slots import Slots
from .step import ByVariable, Constraints, donated_tree, grow, jitted_step, to_donate
from .train_step import TrainStep, check_loss, check_not_trained

log = logging.getLogger(__name__)

GradsAndVars = Sequence[tuple[Any, Variable]]


class Optimizer(Hyperparameters, Slots):
    """Updates variables in place, as tf.keras's optimizers do: `minimize`, or gradients and `apply_gradients`.

    A class makes its hyperparameters with `_set_hyper` and says in `transform` which gradient
    transformation they stand for; everything else is here. One compiled program does a step of all
    variables. Numbers, schedules of one kind and callables can be reassigned without recompiling it.

    Args:
        name: of the optimizer and its weights.
        gradient_aggregator: a function from the list of (gradient, variable) pairs to such a list; it runs
            first, and is where gradients of several replicas are summed.
        gradient_transformers: functions from such a list to such a list, run in order after it.
        clipvalue, clipnorm, global_clipnorm: bounds on each element, on the norm of each gradient, on the
            norm of all. The last two exclude each other; any of them excludes gradient_transformers.
        decay: the learning rate is divided by 1 + decay · iterations.
        learning_rate: a number, a schedule or a callable; a class without one gives None.
        lr: an old name of learning_rate, which wins over it.

    Raises TypeError for another keyword, ValueError for a negative one.
    """

    def __init__(
        self,
        name: str,
        gradient_aggregator: Callable[[GradsAndVars], GradsAndVars] | None = None,
        gradient_transformers: Sequence[Callable[[GradsAndVars], GradsAndVars]] | None = None,
        *,
        learning_rate: Any = None,
        **kwargs: Any,
    ):
        for key, x in kwargs.items():
            if key not in {"clipnorm", "clipvalue", "global_clipnorm", "lr", "decay"}:
                raise TypeError(f"Unexpected keyword argument passed to optimizer: {key}")
            if x is not None and not callable(x) and x < 0:
                raise ValueError(f"Expected {key} >= 0, received: {x}")
        if "lr" in kwargs:
            warnings.warn("The `lr` argument is deprecated, use `learning_rate` instead.", stacklevel=3)
            learning_rate = kwargs["lr"]
        if isinstance(learning_rate, int | float) and not learning_rate >= 0:
            raise ValueError(f"Expected learning_rate >= 0, received: {learning_rate}")
        self._name = name
        self.clipvalue, self.clipnorm = kwargs.get("clipvalue"), kwargs.get("clipnorm")
        self.global_clipnorm = kwargs.get("global_clipnorm")
        if self.clipnorm is not None and self.global_clipnorm is not None:
            raise ValueError(
                "Cannot accept both `clipnorm` and `global_clipnorm`, "
                f"received clipnorm={self.clipnorm} and global_clipnorm={self.global_clipnorm}"
            )
        if gradient_transformers is not None and any(c is not None for _, c in self._clips()):
            raise ValueError("gradient_transformers cannot be combined with clipvalue, clipnorm or global_clipnorm")
        self.gradient_aggregator = gradient_aggregator
        self.gradient_transformers = list(gradient_transformers or [])
        if learning_rate is not None:
            self._set_hyper("learning_rate", learning_rate)
        self._set_hyper("decay", kwargs.get("decay", 0.0))
        self._variables: dict[str, Variable] = {}  # by the key under which the state has them
        self._keys: dict[int, str] = {}  # of each variable, by id
        self._state: Any = None  # a State, from the first step on
        self._structure: Any = None  # of the transformation that the state belongs to
        self._pending_weights: list[np.ndarray] | None = None
        self._iterations = Variable(0, trainable=False, dtype=jnp.int32, name=f"{name}/iter")

    # What a class says of itself

    def transform(self, hyper: Any) -> GradientTransformation:
        """The transformation for the hyperparameters as they are: `hyper.learning_rate` is an array or a schedule."""
        raise NotImplementedError(f"{type(self).__name__} must override transform(hyper)")

    def get_config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the optimizer from, state apart: plain JSON.

        The name, the clips that are set and all hyperparameters; a class adds what else it takes.
        """
        clips = {k: x for k, x in (("clipnorm", self.clipnorm), ("clipvalue", self.clipvalue)) if x is not None}
        if self.global_clipnorm is not None:
            clips["global_clipnorm"] = self.global_clipnorm
        return {"name": self._name} | clips | {k: self._serialize_hyperparameter(k) for k in self._hyper}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, type] | None = None):
        """The optimizer that `get_config` described, in its state before the first step."""
        config = dict(config)
        if "lr" in config:
            config["learning_rate"] = config.pop("lr")
        if isinstance(rate := config.get("learning_rate"), dict):
            config["learning_rate"] = schedules.deserialize(rate, custom_objects)
        return cls(**config)

    @staticmethod
    def from_transformation(tx: Any, name: str = "Optimizer", **kwargs: Any) -> "Optimizer":
        """An optimizer from any gradient transformation. See `FromTransformation`."""
        from .from_transformation import FromTransformation

        return FromTransformation(tx, name, **kwargs)

    # Training

    def minimize(self, loss: Callable[[], Any], var_list: Any = None, grad_loss: Any = None, name: str | None = None):
        """One step downhill: `compute_gradients`, then `apply_gradients`. Returns `iterations`.

        Args:
            loss: a function of no arguments that reads the variables and returns an array; its sum is
                minimized.
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

    def _clips(self) -> list[tuple[Callable, Any]]:
        return [(clip, self.clipvalue), (clip_by_norm, self.clipnorm), (clip_by_global_norm, self.global_clipnorm)]

    def _transformation(self) -> GradientTransformation:
        """Clipping, then the class's own transformation, with hyperparameters as they now are."""
        hyper = {name: present(x) for name, x in self._hyper.items()}
        if "learning_rate" in hyper and self._decays:
            hyper["learning_rate"] = decayed(hyper["learning_rate"], hyper["decay"])
        clips = (make(bound) for make, bound in self._clips() if bound is not None)
        return chain(*clips, self.transform(SimpleNamespace(**hyper)))

    @property
    def _decays(self) -> bool:
        decay = self._hyper["decay"]
        return callable(decay) or float(decay) != 0

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
            if np.shape(g) != v.shape:
                raise ValueError(f"the gradient of {v.name} has shape {np.shape(g)}, the variable has {v.shape}")
        queues: dict[int, list] = {}
        for g, v in present_pairs:
            queues.setdefault(id(v), []).append(g)
        return [queues[id(v)].pop(0) if queues.get(id(v)) else None for v in variables]

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """A step is done whole or not at all: variables that are new to it are forgotten if it fails."""
        before = dict(self._variables), dict(self._keys), self._structure, self._pending_weights
        iterations = None if self._pending_weights is None else self._iterations._value
        try:
            yield
        except BaseException:
            self._variables, self._keys, self._structure, self._pending_weights = before
            if iterations is not None:
                self._iterations._value = iterations
            raise

    def _prepare(self, variables: Sequence[Variable]) -> tuple[GradientTransformation, Any]:
        """The transformation as it is now, and the state with slots for these variables."""
        tx, state = self._transformation(), self._state
        structure = jax.tree.structure(tx)  # a schedule in the place of a number, say, has a state of its own
        new = [v for v in variables if id(v) not in self._keys]
        if new or structure != self._structure:
            self._structure = structure
            for v in new:
                key = self._unused_key(v)
                self._variables[key], self._keys[id(v)] = v, key
            everything = self._by_variable(self._variables.values(), [v._value for v in self._variables.values()])
            state = grow(tx, state, everything)
            if self._pending_weights is not None:
                before, self._state = self._state, state
                try:
                    self._assign_weights(self._pending_weights)
                finally:
                    self._state = before
                self._pending_weights = None
        return tx, state

    def _unused_key(self, v: Variable) -> str:
        path, n = v.path, 1
        while (key := path if n == 1 else f"{path}_{n}") in self._variables:
            n += 1
        return key

    def _by_variable(self, variables: Iterable[Variable], values: Iterable[Any]) -> ByVariable:
        """Values of some variables, with None for all others that the state knows."""
        given = {self._keys[id(v)]: x for v, x in zip(variables, values, strict=True)}
        return ByVariable((key, given.get(key)) for key in self._variables)

    def _idle(self, variables: Iterable[Variable]) -> ByVariable:
        """The values of all variables but these."""
        busy = {id(v) for v in variables}
        return ByVariable((key, None if id(v) in busy else v._value) for key, v in self._variables.items())

    def _apply(self, pairs: list[tuple], advance: bool) -> None:
        """One compiled step for variables that differ."""
        variables = [v for _, v in pairs]
        with self._undone_on_error():
            tx, state = self._prepare(variables)
            grads = [g if isinstance(g, jax.Array) else jnp.asarray(g) for g, _ in pairs]
            values = self._by_variable(variables, to_donate([v._value for v in variables]))
            values, self._state, self._iterations._value = jitted_step(
                tx,
                donated_tree(state),
                values,
                self._idle(variables),
                self._by_variable(variables, grads),
                *to_donate([self._iterations._value]),
                constraints=self._constraints(variables),
                advance=advance,
            )
        for v in variables:
            v._value = values[self._keys[id(v)]]

    def _constraints(self, variables: Iterable[Variable]) -> Constraints:
        return tuple((self._keys[id(v)], v.constraint) for v in variables if v.constraint is not None)

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

    # State

    @property
    def iterations(self) -> Variable:
        """Steps done: an int32 `Variable` of shape (). Bias corrections and schedules follow it."""
        return self._iterations

    @iterations.setter
    def iterations(self, variable: Variable) -> None:
        if self._state is not None:
            raise RuntimeError(
                "Cannot set `iterations` to a new Variable after the Optimizer weights have been created; "
                "assign to the present one: optimizer.iterations.assign(...)"
            )
        if not (
            isinstance(variable, Variable) and variable.shape == () and jnp.issubdtype(variable.dtype, jnp.integer)
        ):
            raise TypeError(f"iterations must be a Variable that holds one integer, got {variable!r}")
        self._iterations = variable


def _pairs(grads_and_vars: Iterable[Any]) -> list[tuple]:
    pairs = list(grads_and_vars)
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise TypeError(f"grads_and_vars must hold (gradient, variable) pairs, got {pair!r}")
        if not isinstance(pair[1], Variable):
            raise TypeError(f"the second of each pair must be a Variable, got {pair[1]!r}")
    return [(g, v) for g, v in pairs]
