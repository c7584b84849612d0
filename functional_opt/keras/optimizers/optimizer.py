"""Optimizer: Keras's stateful API over a pure transformation. It contains no algorithm."""

import copy
import functools
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from ...core.names import did_you_mean, meant_by
from ...core.ranges import described, number, unread
from ..engine.engine import Engine, SingleEngine, zero_iterations
from ..engine.replicas import AxisName
from ..engine.step import OptimizerStep, StepInputs, decayed, resolve_schedules
from ..engine.views import Derived, Fields, SlotView
from ..variables.foreign import all_ours
from ..variables.recording import BUSY, Cell, depends_on
from ..variables.variable import Variable
from . import checkpoints, schedules
from .clips import as_chain
from .configs import as_arguments, check_flag, within
from .graph_mode import users_level
from .hyper import not_negative, present
from .pairs import GradsAndVars
from .shared import CLIPS, SHARED, checked
from .training import Training
from .undecayed import Undecayed
from .weights import Groups, OwnWeights, Variables, WeightViews

NO_RATE: Any = object()
"""Stands for the learning rate of an optimizer without one."""
Dialect = Literal["keras2", "keras3"]
EPSILON = 1e-7
"""Keras's default epsilon, also used if epsilon is 0 or None."""


class Optimizer(Training):
    """Updates variables in place, as Keras's optimizers do, by `minimize` or `apply_gradients`.

    A subclass makes its hyperparameters with `_set_hyper` and returns a gradient transformation from
    `transform`; this class does everything else. One compiled program updates all variables. Numbers,
    schedules and callables can be reassigned without recompiling it.

    Args:
        name: the optimizer's name, also used in the names of its weights; derived from its class if None.
        gradient_aggregator: a function that takes a list of (gradient, variable) pairs and returns such a
            list. It runs first; this is where to sum the gradients of several replicas.
        gradient_transformers: functions of the same kind, which run in order after the aggregator.
        learning_rate: a number, a schedule or a callable; a class without a learning rate omits it.
        clipvalue, clipnorm, global_clipnorm: bounds on each element, on the norm of each gradient, and on the
            norm of all gradients. The last two exclude each other; any of them excludes gradient_transformers.
        decay: the learning rate is divided by 1 + decay · iterations.
        lr: the old name of learning_rate; it takes precedence if both are given.
        weight_decay: before each update, p ← p − weight_decay · learning_rate · p.
        use_ema, ema_momentum, ema_overwrite_frequency: whether to keep running means of the variables
            (a ← ema_momentum · a + (1 − ema_momentum) · p), and the number of steps, if any, after which the
            means replace the values. `finalize_variable_values` replaces them at the end.
        loss_scale_factor: the factor that `scale_loss` multiplies the loss by, and that gradients are divided by.
        gradient_accumulation_steps: the number of gradients, at least 2, whose mean makes one update.
        axis_name: the axis of the replicas in `jax.shard_map`, `jax.pmap` or `jax.vmap`. Gradients are summed
            over it before anything else, unless a gradient_aggregator is given. Gradients that shard_map
            knows to be equal on all devices are sums already.
        dialect: where the two differ, "keras2" gives the results and the order of weights of tf.keras's
            OptimizerV2, "keras3" those of Keras 3.

    Raises TypeError for an unknown keyword, ValueError for a value out of range.

    Differs from Keras 3 in the "keras2" dialect: running means are taken after the constraints; with
    accumulation, they and schedules advance once per update, not with every gradient.
    """

    slots: Groups = ()
    """The slots in the "keras2" dialect, or in both dialects if `keras3_slots` is empty."""
    keras3_slots: Groups = ()
    scalars: dict[str, str] = {}
    """Weights that are kept once per optimizer, and the fields of the state that they are views of."""
    weights_start_with_iteration: ClassVar[bool] = True
    """Whether `set_weights` takes only lists that begin with the number of steps."""
    settings: tuple[str, ...] = ()
    """The constructor arguments that are plain attributes; `get_config` includes them."""
    default_dialect: Dialect = "keras2"

    def __init__(
        self,
        name: str | None = None,
        gradient_aggregator: Callable[[GradsAndVars], GradsAndVars] | None = None,
        gradient_transformers: Sequence[Callable[[GradsAndVars], GradsAndVars]] | None = None,
        *,
        learning_rate: Any = NO_RATE,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        weight_decay: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        axis_name: AxisName | None = None,
        dialect: Dialect | None = None,
        **kwargs: Any,
    ):
        dialect = dialect or self.default_dialect
        for key in kwargs:
            if key not in {"lr", "decay"}:
                hint = did_you_mean(key, self._arguments())
                raise TypeError(f"Unexpected keyword argument passed to optimizer: {key}{hint}")
        if dialect not in ("keras2", "keras3"):
            raise ValueError(f"dialect must be 'keras2' or 'keras3', got {dialect!r}")
        if "lr" in kwargs:
            warnings.warn("The `lr` argument is deprecated, use `learning_rate` instead.", stacklevel=users_level())
            not_negative("lr", learning_rate := kwargs["lr"])
        if not isinstance(name, str | None):
            hint = (
                "" if number(name) is NotImplemented else "; in Keras 3 weight_decay has this place: give it by name"
            )
            raise TypeError(f"name must be a string, got {described(name)}{hint}")
        self._name, self.dialect = name or _default_name(type(self).__name__, dialect), dialect
        self.gradient_aggregator, self.axis_name = gradient_aggregator, axis_name
        self.gradient_transformers = list(gradient_transformers or [])
        self.clipvalue, self.clipnorm, self.global_clipnorm = clipvalue, clipnorm, global_clipnorm
        self.weight_decay, self.loss_scale_factor = weight_decay, loss_scale_factor
        self.use_ema, self.ema_momentum, self.ema_overwrite_frequency = use_ema, ema_momentum, ema_overwrite_frequency
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self._undecayed = Undecayed()
        self._traced_hyper, self._last, self._programs = Cell(None), None, {}
        self._start_hooks()
        self._engine = self._new_engine()
        self._views = WeightViews(self)
        self._initial_decay = kwargs.get("decay", 0.0)
        if learning_rate is not NO_RATE:
            self._set_hyper("learning_rate", learning_rate)
        self._set_hyper("decay", self._initial_decay)

    @property
    def __class__(self) -> Any:
        """The class. If the real Keras asks, as `compile` does, the optimizer first becomes one of Keras's, too."""
        asking = sys._getframe(1).f_globals.get("__name__", "")
        if asking.startswith("keras.") and Optimizer._asked_by_keras is not None:
            return Optimizer._asked_by_keras(self, asking)
        return type(self)

    _asked_by_keras: ClassVar[Callable[["Optimizer", str], type] | None] = None
    """Returns the class for a module of the real Keras that asks for it; `within_keras` sets it."""

    @property
    def name(self) -> str:
        return self._name

    def __setattr__(self, name: str, x: Any) -> None:
        x = checked(name, x)
        check_flag(type(self), name, x)
        self._refuse_misspelled(name)
        if name == "gradient_accumulation_steps" and x != self.__dict__.get(name, x) and self.built:
            raise RuntimeError(
                f"gradient_accumulation_steps cannot change from {self.gradient_accumulation_steps} to {x} after the "
                "first step, as the steps are counted by it; set it before, or make another optimizer"
            )
        if name in CLIPS and x is not None:
            if self.gradient_transformers:
                raise ValueError(
                    "gradient_transformers cannot be combined with clipvalue, clipnorm or global_clipnorm"
                )
            norms = {n: self.__dict__.get(n) for n in ("clipnorm", "global_clipnorm")} | (
                {} if name == "clipvalue" else {name: x}
            )
            if None not in norms.values():
                given = " and ".join(f"{n}={bound}" for n, bound in norms.items())
                raise ValueError(f"Cannot accept both `clipnorm` and `global_clipnorm`, received {given}")
        super().__setattr__(name, x)

    def _refuse_misspelled(self, name: str) -> None:
        """Raises AttributeError for an attribute that the class, one of the library's, would not read."""
        ours = type(self).__module__.startswith("functional_opt.") and "_views" in self.__dict__
        if not ours or name.startswith("_") or name in self.__dict__ or hasattr(type(self), name) or name == "lr":
            return
        known = [*self._hyper, *self.settings, *SHARED]
        if name not in known and (meant := meant_by(name, known, cutoff=0.8)):
            raise AttributeError(
                f"{type(self).__name__} does not read {name}; did you mean {' and '.join(meant)}? "
                f"It has {', '.join(known)}"
            )

    @classmethod
    def _arguments(cls) -> list[str]:
        """Returns the names of the constructor's arguments, its class's own first."""
        known: dict[str, None] = {}
        for kind in cls.__mro__:
            if issubclass(kind, Optimizer) and "__init__" in vars(kind):
                parameters = list(inspect.signature(vars(kind)["__init__"]).parameters.values())[1:]
                known.update({p.name: None for p in parameters if p.kind is not p.VAR_KEYWORD})
        return [*known]

    def _new_engine(self) -> Engine:
        """Returns the engine, without state."""
        name = "iteration" if self.dialect == "keras3" else "iter"
        return SingleEngine(self, zero_iterations(f"{self._name}/{name}"))

    def get_config(self) -> dict[str, Any]:
        """Returns the config, as plain JSON, from which `from_config` rebuilds the optimizer without its state.

        It has the name, the hyperparameters, `settings`, and the arguments of `Optimizer` that are set (in the
        "keras3" dialect, all that Keras 3 has).
        """
        own = {name: getattr(self, name) for name in self.settings}
        own |= {name: self._serialize_hyperparameter(name) for name in self._hyper}
        shared = {name: getattr(self, name) for name in SHARED}
        if self.dialect == "keras2":
            shared = {name: x for name, x in shared.items() if x != SHARED[name]}
        elif own["decay"] == 0:
            del own["decay"]
        if self.dialect != self.default_dialect:
            own["dialect"] = self.dialect
        return {"name": self._name} | own | shared

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, type] | None = None):
        """Returns the optimizer that a config from `get_config` describes, in its state before the first step.

        A config of Keras 3, or of the new optimizers of tf.keras 2.11 to 2.15, gives an optimizer of the "keras3"
        dialect, with their results.

        Raises TypeError or ValueError, naming the entry, for an entry that the class does not accept.
        """
        config = as_arguments(cls, config)
        config.pop("jit_compile", None)  # tf.keras 2.11 to 2.15 wrote these two
        new = config.pop("is_legacy_optimizer", True) is False
        if new or "decay" not in config and {"loss_scale_factor", "gradient_accumulation_steps"} <= config.keys():
            config.setdefault("dialect", "keras3")  # not from OptimizerV2, which writes `decay` and no such entries
        if "lr" in config:
            config["learning_rate"] = config.pop("lr")
        if isinstance(rate := config.get("learning_rate"), dict):
            with within("learning_rate"):
                config["learning_rate"] = schedules.deserialize(rate, custom_objects)
        optimizer = cls(**config)
        if cls.__module__.startswith(__package__ or ""):
            optimizer._numbers()  # the transformation checks values that the constructor only stores
        return optimizer

    @staticmethod
    def from_transformation(tx: Any, name: str = "Optimizer", **kwargs: Any) -> "Optimizer":
        """Returns an optimizer over any gradient transformation. See `FromTransformation`."""
        return Optimizer._over_transformation(tx, name, **kwargs)

    _over_transformation: ClassVar[Callable[..., "Optimizer"]]
    """The subclass that `from_transformation` makes; `from_transformation.py` sets it."""

    # The parts of a step

    def _numbers(self) -> StepInputs:
        """Returns the inputs of a step: transformations and numbers, with the present hyperparameters."""
        return self._made_of_hyper(self._inputs)

    def _inputs(self, hyper: dict[str, Any]) -> StepInputs:
        if "learning_rate" in hyper and self._decays:
            hyper = hyper | {"learning_rate": decayed(hyper["learning_rate"], hyper["decay"])}
        early = self._clips_here

        def parts() -> tuple[Any, Any]:
            rule = self._imperative(hyper) if self._is_custom else self.transform(SimpleNamespace(**hyper))
            return as_chain([] if early else self._clips()), rule

        # they were checked when assigned; checking them here would make the host wait at every step
        clips, rule = unread(parts)
        return StepInputs(
            clips=clips,
            rule=rule,
            learning_rate=hyper.get("learning_rate"),
            weight_decay=present(self.weight_decay) if callable(self.weight_decay) else self.weight_decay,
            loss_scale=None if early else self.loss_scale_factor,
            ema_momentum=self.ema_momentum if self.use_ema else None,
        )

    @property
    def _decays(self) -> bool:
        decay = self._hyper["decay"]
        if isinstance(decay, Variable):
            decay = decay._settled()
        return callable(decay) or isinstance(decay, core.Tracer) or float(decay) != 0

    def _plan(self, variables: Sequence[Variable]) -> OptimizerStep:
        """Returns the step of these variables, as the program is compiled for it."""
        keys = self._single_engine().store.keys
        key = lambda v: keys[id(v)]  # noqa: E731
        shrunk = [] if self.weight_decay is None else [key(v) for v in variables if v not in self._undecayed]
        return OptimizerStep(
            constraints=tuple([(key(v), v.constraint) for v in variables if v.constraint is not None]),
            decayed=tuple(shrunk),
            rows="as they are" if self._is_custom else self.row_mode,
            accumulate=self.gradient_accumulation_steps,
            ema_overwrite=self.ema_overwrite_frequency,
            overwritten=tuple([key(v) for v in variables if v.overwrite_with_gradient]),
            keras3=self.dialect == "keras3",
        )

    def _updates_done(self, count: Any) -> Any:
        n = None if self._runs_traced else self.gradient_accumulation_steps
        return count // n if n else count

    def _known_attributes(self) -> frozenset[str]:
        return _attributes_of_all()

    # Iterations and rates

    @property
    def _iterations(self) -> Variable:
        return self._engine.iterations

    @_iterations.setter
    def _iterations(self, variable: Variable) -> None:
        self._engine.iterations = variable
        self._last = None

    @property
    def iterations(self) -> Variable:
        """The number of steps taken: an int32 `Variable` of shape (). Bias corrections and schedules follow it.

        With `gradient_accumulation_steps` in the "keras3" dialect it is the number of updates, as in Keras 3.
        """
        n = self.gradient_accumulation_steps
        if n is None or self.dialect == "keras2" or self._runs_traced:
            return self._iterations
        count = self._iterations
        return Derived(lambda: count._value // n, count.path, lambda x: count.assign(x * n))

    @iterations.setter
    def iterations(self, variable: Variable) -> None:
        if self.built:
            raise RuntimeError(
                "Cannot set `iterations` to a new Variable after the Optimizer weights have been created; "
                "assign to the present one: optimizer.iterations.assign(...)"
            )
        if not (
            isinstance(variable, Variable) and variable.shape == () and jnp.issubdtype(variable.dtype, jnp.integer)
        ):
            raise TypeError(f"iterations must be a Variable that holds one integer, got {variable!r}")
        self._iterations = variable

    @property
    def built(self) -> bool:
        """True once `build` was called or a step was taken."""
        return self._engine.built

    def current_learning_rate(self) -> Any:
        """Returns the rate of the next step: a float32 array of shape (), whatever `learning_rate` is."""
        rate = self._present(self._hyper["learning_rate"])
        rate = decayed(rate, self._present(self._hyper["decay"])) if self._decays else rate
        count = self._iterations.value
        return resolve_schedules(count if self.dialect == "keras3" else self._updates_done(count), rate)

    def scale_loss(self, loss: Any) -> Any:
        """Multiplies the loss by `loss_scale_factor`, if set. Gradients are divided by it in the step.

        Only needed for gradients computed elsewhere: `minimize`, `compute_gradients` and `make_train_step` do it.
        """
        factor = depends_on(lambda: self.loss_scale_factor)
        return loss if factor is None else loss * factor

    # Slots and weights

    def get_slot_names(self) -> list[str]:
        """Returns the names of the slots that exist; none before the first step."""
        return self._views.slot_names()

    def get_slot(self, var: Any, slot_name: str) -> Variable:
        """Returns a variable's slot, a view that can be assigned to. Raises KeyError if it does not exist."""
        return self._views.slot(var, slot_name)

    @property
    def variables(self) -> Variables:
        """All variables that the optimizer keeps, in the order of its dialect. The list can also be called.

        First `iterations`, then (in the "keras3" dialect) the learning rate if it is a number, then running means
        and accumulated gradients, if any, then the slots. In the "keras2" dialect, values kept once per optimizer
        come second; in the other dialect they come last.
        """
        return self._views.variables()

    @property
    def weights(self) -> list[Variable]:
        """The same as `variables`."""
        return self.variables

    @property
    def _weights(self) -> list[Variable]:
        return OwnWeights(self.variables, self._extra_weights)

    @_weights.setter
    def _weights(self, weights: Sequence[Variable]) -> None:
        if not isinstance(weights, OwnWeights):  # which `+=` has extended
            known = {id(w) for w in self._counters()}
            self._extra_weights[:] = [w for w in weights if not isinstance(w, SlotView) and id(w) not in known]

    def get_weights(self) -> list[np.ndarray]:
        """Returns the values of `weights`."""
        return [w.numpy() for w in self.weights]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assigns `weights`. If the slots do not exist yet, the values are kept until they are made.

        Raises ValueError, and changes nothing, if the length, a shape or a kind of number differs.
        """
        with BUSY.lock:
            self._views.set(weights)

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Writes the values of `variables` to a dict-like store, under the keys "0", "1" ..."""
        for i, v in enumerate(self.variables):
            store[str(i)] = v.numpy()

    def load_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Loads what `save_own_variables` wrote. Raises ValueError, and changes nothing, if it does not fit."""
        keys = [str(i) for i in range(len(store))]
        if missing := [key for key in keys if key not in store]:
            raise ValueError(f"the store must have the keys '0' to '{len(keys) - 1}'; it lacks {missing}")
        self.set_weights([np.asarray(store[key]) for key in keys])

    def save(self, path: str | os.PathLike, variables: checkpoints.Variables) -> None:
        """Saves the variables and everything that the optimizer keeps to one file, written whole or not at all.

        The file is of the safetensors format. Its arrays have the paths of the variables as names, and the names of
        slots after a `#`, such as `dense/kernel#mu`.

        Args:
            path: the file; its folder must exist.
            variables: all that the optimizer trains, and others, such as running statistics, if you like; or a dict
                of them by the paths that they are to have, for variables without paths of their own (nnx's).

        Raises ValueError if the optimizer knows a variable that is not among them, or if two have the same path.

        >>> import tempfile
        >>> from functional_opt import keras
        >>> w, opt = keras.Variable([1.0, 2.0], name="w"), keras.optimizers.SGD(0.5, momentum=0.5)
        >>> _ = opt.minimize(lambda: jnp.sum(w.value), [w])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     opt.save(f"{folder}/run.safetensors", [w])
        ...     new, opt = keras.Variable([0.0, 0.0], name="w"), keras.optimizers.SGD(0.1, momentum=0.5)
        ...     opt.restore(f"{folder}/run.safetensors", [new])
        >>> new.numpy().tolist(), opt.get_slot(new, "momentum").numpy().tolist(), float(opt.learning_rate)
        ([0.5, 1.5], [-0.5, -0.5], 0.5)
        """
        checkpoints.save(self, path, variables)

    def restore(self, path: str | os.PathLike, variables: checkpoints.Variables) -> None:
        """Gives variables and the optimizer the values that `save` wrote: steps go on with the same bits.

        Variables are matched by path, in any order. Numbers that were assigned, such as the learning rate, come back,
        too; schedules and other arguments are those of this optimizer.

        Raises ValueError, and changes nothing, for a file that is damaged, and for variables or an optimizer that do
        not fit; it names the array.
        """
        checkpoints.restore(self, path, variables)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Sequence[str] | None = None) -> None:
        """Excludes variables from `weight_decay`: those in `var_list`, and those whose path a pattern is found in."""
        if isinstance(var_names, str):
            raise TypeError(
                f"var_names must be a list of patterns, got the string {var_names!r}: write [{var_names!r}]"
            )
        self._undecayed.add(all_ours(var_list or ()), list(var_names or ()))

    def finalize_variable_values(self, var_list: Iterable[Any]) -> None:
        """Replaces the variables' values by their running means, if `use_ema` keeps any."""
        for v, x in zip(all_ours(var_list), self.averaged_params(var_list), strict=True):
            if x is not v._value:
                v.assign(x)

    def averaged_params(self, var_list: Iterable[Any] | None = None) -> list[jax.Array]:
        """Returns the values to evaluate with: the running means if `use_ema` keeps any, else the present values.

        None means all variables.
        """
        store = self._single_engine().store
        given = self._engine.known() if var_list is None else all_ours(var_list)
        means = store.state.average if store.state is not None else {}
        return [means.get(store.keys.get(id(v)), v._value) for v in given]

    def _rule_slots(self) -> Groups:
        return self.keras3_slots if self.dialect == "keras3" and self.keras3_slots else self.slots

    def _slot(self, key: str, slot_name: str) -> SlotView:
        return self._views.added_slot(key, slot_name)

    def _slot_label(self, key: str, slot_name: str) -> str:
        """Returns the name of a slot as a variable."""
        return f"{self._name}/{key}{'_' if self.dialect == 'keras3' else '/'}{slot_name}"

    def _weights_of(self, key: str, group: dict[str, Fields]) -> Iterator[Variable]:
        """Yields the slots of a variable in one group, as they appear in the weights."""
        variable = self._single_engine().store.variables[key]
        for name, field in group.items():
            if self._views.has(field, key):
                yield self.get_slot(variable, name)

    def _counters(self) -> list[Variable]:
        """Returns the variables that are not views of the state: `iterations`, and the learning rate if a number."""
        rate = self._hyper.get("learning_rate")
        return [self._iterations, *([rate] if isinstance(rate, Variable) else [])]

    def _assign_weights(self, weights: Sequence[Any]) -> None:
        self._views.assign_kept(weights)

    def _of_older_generations(self, weights: Sequence[Any]) -> Sequence[Any]:
        """Converts weights to the present form, if the class knows an older one."""
        return weights

    # Copies

    def __deepcopy__(self, memo: dict) -> Self:
        """Returns a copy with its own state, for the same variables, or for their copies if they are copied along."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        with BUSY.lock:
            others = self._without_ids()
            for name, x in self.__dict__.items():
                twin.__dict__[name] = others[name] if name in others else copy.deepcopy(x, memo)
        return twin

    def _without_ids(self) -> dict[str, Any]:
        """Returns the attributes that refer to variables by their identity, as a copy starts with them."""
        return {"_undecayed": self._undecayed.by_path(), "_last": None, "_programs": {}}

    def __getstate__(self) -> dict[str, Any]:
        """Refers to variables that do not decay by their paths, which an optimizer made from a pickle still knows."""
        return self.__dict__ | self._without_ids()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@functools.cache
def _attributes_of_all() -> frozenset[str]:
    """Returns the names of the attributes that every optimizer has."""
    return frozenset(vars(Optimizer("blank")))


def _default_name(cls: str, dialect: Dialect) -> str:
    """Returns the name of the class as it is for Keras 2, in snake case for Keras 3."""
    return cls if dialect == "keras2" else re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls).lower()
