"""Optimizers of the facade in the real Keras's `compile` and `fit`: they become optimizers of Keras, too.

Keras asks `isinstance(optimizer, keras.optimizers.Optimizer)`, which looks at `optimizer.__class__`. When Keras asks,
`join_keras` replaces the optimizer's class by a subclass that also derives from Keras's and answers to Keras's
protocol. The optimizer stays the same object, with the same state. Keras sees the arrays of that state as variables
(see `views`), so that everything it does to them happens to the state itself.

The library's classes are registered with Keras when it first asks, or when this module is imported after Keras. A
process that only loads a `.keras` file imports Keras, then `functional_opt.keras` or `functional_opt.interop`.
"""

import functools
import sys
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from ...config import from_config, to_config
from ...core.schedule import Schedule
from ..optimizers import CLASSES, FromTransformation, LossScaleOptimizer, Optimizer, schedules
from ..optimizers.shared import SHARED
from ..optimizers.weights import Variables
from ..variables import recording
from ..variables.foreign import all_ours, unwrap
from ..variables.variable import Variable
from .views import Views, family, keras, singles

PACKAGE = "functional_opt"
"""The package under which the library's optimizers are registered with Keras."""


def join_keras(optimizer: Optimizer) -> Optimizer:
    """Makes an optimizer of the facade, and those that it wraps, optimizers of the real Keras, too. Returns it.

    Raises RuntimeError if Keras does not run on JAX.
    """
    check_backend()
    for part in family(optimizer):
        if not issubclass(type(part), Joined):
            vars(object)["__class__"].__set__(part, joined_class(type(part)))
    return optimizer


def check_backend() -> None:
    """Raises RuntimeError if Keras does not run on JAX."""
    if keras().backend.backend() != "jax":
        raise RuntimeError(
            f"functional_opt needs Keras on JAX, not on {keras().backend.backend()}; set KERAS_BACKEND=jax"
        )


def asked_by_keras(optimizer: Optimizer, module: str) -> type:
    """Returns the `__class__` that a module of Keras asks for, and joins the optimizer if Keras runs on JAX.

    Raises RuntimeError if it does not and it is `compile` that asks.
    """
    if keras().backend.backend() != "jax":
        if module == "keras.src.optimizers":
            check_backend()
        return type(optimizer)
    if issubclass(type(optimizer), Joined):
        return type(optimizer)
    register_classes()
    join_keras(optimizer)
    return _just_joined(type(optimizer))


@functools.cache
def _just_joined(joined: type) -> type:
    """Returns a subclass, as `isinstance` disregards a `__class__` that is the type which the object has by then."""
    return type(joined.__name__, (joined,), {"__module__": joined.__module__})


class Joined(Optimizer):
    """The methods that the real Keras calls on an optimizer. It is the first base of a joined optimizer's class."""

    _facade: ClassVar[Any]
    """The class that the optimizer had before."""

    @property
    def _keras_views(self) -> Views:
        return self.__dict__.setdefault("_in_keras", Views())

    def _known_attributes(self) -> frozenset[str]:
        return super()._known_attributes() | {"_in_keras"}

    # Variables

    @property
    def variables(self) -> Variables:
        """Everything that a step may change, as variables of Keras; `weights` are the facade's own variables."""
        if not recording.active():
            self._settle()
        return Variables(self._keras_views(self))

    def _settle(self) -> None:
        """Makes slots that the user's code has come to need, before Keras takes the values out of its variables."""
        for part in singles(self):
            known = part._engine.known()
            if part.built and part._is_custom and all(v._value is not None for v in known):
                part._engine.prepare(known)

    @property
    def weights(self) -> list[Variable]:
        """The weights in the order of the dialect, as before."""
        return super().variables

    @property
    def _trainable_variables(self) -> list[Any]:
        given = self._keras_views.trainable
        return [unwrap(v) for v in self._engine.known()] if given is None else given

    @property
    def _model_variables_moving_average(self) -> list[Any]:
        if not (self.use_ema and self.built):
            raise AttributeError("the optimizer keeps no running means")
        return self._keras_views.averages(self, all_ours(self._trainable_variables))

    def build(self, var_list: Any) -> None:
        variables = list(var_list)
        ours = all_ours(variables)  # kept, as a wrapper knows them by their ids
        if self.__dict__.get("_parts"):  # which may have a `build` of the user's
            self._build_once(ours)
        super().build(variables)
        self._keras_views.trainable = [unwrap(v) for v in ours]
        join_keras(self)  # a function of a MultiOptimizer may have returned more optimizers

    # Steps

    def stateless_apply(
        self, optimizer_variables: Sequence[Any], grads: Sequence[Any], trainable_variables: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Applies gradients as a pure function. The variables are those given to `build`, in their order.

        Without a call of `build` they are those of the first steps. Raises ValueError if they do not fit.
        """
        own, mine = self.variables, all_ours(self._trainable_variables)
        given = [np.shape(x) for x in trainable_variables]
        if len(grads) != len(given) or given != [tuple(v.shape) for v in self._trainable_variables]:
            raise ValueError(
                f"optimizer {self.name!r} was built for variables of other shapes than {given}; call "
                "optimizer.build(model.trainable_variables) first, or make a new optimizer"
            )
        kept = [_array(x) for x in optimizer_variables]

        def run() -> tuple[list[Any], list[Any]]:
            self._engine.detach()
            for v, x in zip([*mine, *own], [*map(_array, trainable_variables), *kept], strict=True):
                v._value = x
            self._replace_missing()
            self.apply(grads, mine)
            return [v._value for v in mine], [v._value for v in own]

        return recording.call(run, (), ()).out

    def _replace_missing(self) -> None:
        """Gives a value to variables that take no part and whose own Keras has taken out for an epoch."""
        for part in singles(self):
            store = part._single_engine().store
            means = {} if store.state is None else store.state.average
            for key, v in store.variables.items():
                if v._value is None:
                    theirs = unwrap(v)
                    v._value = means[key] if key in means else jnp.zeros(theirs.shape, theirs.dtype)

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        if recording.active() or not _in_scope():
            return super().apply(grads, trainable_variables)
        variables = self._trainable_variables if trainable_variables is None else list(trainable_variables)
        own = self.variables
        moved, kept = self.stateless_apply([v.value for v in own], list(grads), [v.value for v in variables])
        for v, x in zip([*variables, *own], [*moved, *kept], strict=True):
            v.assign(x)

    def scale_loss(self, loss: Any) -> Any:
        if recording.active() or not _in_scope():
            return super().scale_loss(loss)
        views = self._keras_views.numbers(self)
        scale = functools.partial(super().scale_loss, loss)
        return recording.call(scale, [view.variable for view in views], [view.value for view in views]).out

    def finalize_variable_values(self, var_list: Any) -> None:
        variables = list(var_list)
        if any(getattr(v, "_value", v) is None for v in variables):
            return  # Keras calls this after an error in its first step, too, and by then has lost the values
        if any(part.use_ema for part in family(self)):
            super().finalize_variable_values(variables)
            self._keras_views.unshare(self)

    # The learning rate

    @property
    def learning_rate(self) -> Any:
        """The variable that holds the rate, or the present value of a schedule."""
        own = getattr(self._facade, "learning_rate", None)
        rate = own.__get__(self) if own is not None else self.__getattr__("learning_rate")
        return self.current_learning_rate() if callable(rate) and self._traced_hyper._value is None else rate

    @learning_rate.setter
    def learning_rate(self, x: Any) -> None:
        self._facade.learning_rate.__set__(self, x)

    def __setattr__(self, name: str, x: Any) -> None:
        rate = self.__dict__.get("_hyper", {}).get("learning_rate") if name in ("learning_rate", "lr") else None
        if _is_schedule(rate) and not callable(x):
            raise TypeError(
                f"the learning rate of {self.name!r} is a schedule, {rate!r}, so it cannot be set to a number; make "
                "the optimizer with a number, which callbacks can set"
            )
        super().__setattr__(name, x)

    # Files and copies

    def _serialize_hyperparameter(self, name: str) -> Any:
        if _is_kerass_schedule(self._hyper[name]):
            return keras().saving.serialize_keras_object(self._hyper[name])
        return super()._serialize_hyperparameter(name)

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` wrote. As Keras's optimizers, it warns if the numbers of arrays differ."""
        views = self.variables
        if len(store.keys()) != len(views):
            warnings.warn(
                f"the state of optimizer {self.name!r} was not loaded: it has {len(views)} variables, the file has "
                f"{len(store.keys())}",
                stacklevel=2,
            )
            return
        for i, v in enumerate(views):
            v.assign(store[str(i)])

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, type] | None = None) -> Optimizer:
        """Returns an optimizer of the facade. The user's classes are those that Keras knows, too."""
        return cls._facade.from_config(config, {**_registered(config), **(custom_objects or {})})

    def __deepcopy__(self, memo: dict) -> Optimizer:
        twin = super().__deepcopy__(memo)
        self._keras_views.unshare(self)
        return twin

    def __reduce__(self) -> tuple:
        return _new, (self._facade,), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in super().__getstate__().items() if name != "_in_keras"}


class JoinedTransformation(Joined):
    """Adds the config of an optimizer over a transformation."""

    def get_config(self) -> dict[str, Any]:
        config = {"name": self.name, "tx": to_config(self._tx)} | {name: getattr(self, name) for name in SHARED}
        rate = self._hyper.get("learning_rate")
        if rate is not None and not isinstance(rate, Schedule):
            config["learning_rate"] = self._serialize_hyperparameter("learning_rate")
        return config | {"dialect": self.dialect}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, type] | None = None) -> Optimizer:
        config = dict(config)
        rate = config.pop("learning_rate", None)
        optimizer = cls._facade(from_config(config.pop("tx")), **config)
        if rate is not None:
            found = {**_registered({"learning_rate": rate}), **(custom_objects or {})}
            optimizer.learning_rate = schedules.deserialize(rate, found) if isinstance(rate, dict) else rate
        return optimizer


@functools.cache
def joined_class(facade: type) -> type:
    """Returns the subclass of a facade class that also derives from Keras's, registered as that class is."""
    mixin = JoinedTransformation if issubclass(facade, FromTransformation) else Joined
    theirs = keras().optimizers.LossScaleOptimizer if issubclass(facade, LossScaleOptimizer) else keras().Optimizer
    own = {"_facade": facade, "__module__": facade.__module__, "__doc__": facade.__doc__}
    cls = type(facade.__name__, (mixin, facade, theirs), own)
    package, _, name = keras().saving.get_registered_name(facade).rpartition(">")
    if CLASSES.get(facade.__name__) is facade or facade is FromTransformation:
        package = PACKAGE
    if package:
        keras().saving.register_keras_serializable(package, name)(cls)
    return cls


@functools.cache
def register_classes() -> None:
    """Registers the library's optimizers with Keras, so that a process that only loads files knows them."""
    for cls in (*CLASSES.values(), FromTransformation):
        if issubclass(cls, Optimizer):
            joined_class(cls)


def _new(facade: Any) -> Any:
    return object.__new__(facade)


def _array(x: Any) -> Any:
    return x.value if isinstance(x, keras().Variable) else jnp.asarray(x)


def _in_scope() -> bool:
    """Returns whether Keras keeps assignments apart, in a `keras.StatelessScope`."""
    with keras().StatelessScope() as scope:
        return scope.original_scope is not None


def _is_schedule(rate: Any) -> bool:
    return isinstance(rate, Schedule | schedules.LearningRateSchedule) or _is_kerass_schedule(rate)


def _is_kerass_schedule(rate: Any) -> bool:
    return isinstance(rate, keras().optimizers.schedules.LearningRateSchedule)


def _registered(config: Any) -> dict[str, Any]:
    """Returns the classes named in a config that the user has registered with Keras or given to it."""
    if not isinstance(config, dict | list | tuple):
        return {}
    found: dict[str, Any] = {}
    for x in config.values() if isinstance(config, dict) else config:
        found |= _registered(x)
    name = config.get("class_name") if isinstance(config, dict) else None
    if isinstance(name, str):
        known = {n.rpartition(">")[2]: c for n, c in keras().saving.get_custom_objects().items() if not _is_own(n)}
        if cls := keras().saving.get_registered_object(name) or known.get(name):
            found[name] = cls
    return found


def _is_own(registered_name: str) -> bool:
    return registered_name.startswith(f"{PACKAGE}>")


Optimizer._asked_by_keras = asked_by_keras
if hasattr(sys.modules.get("keras"), "StatelessScope") and keras().backend.backend() == "jax":
    register_classes()
