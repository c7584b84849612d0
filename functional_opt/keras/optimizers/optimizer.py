"""Optimizer: Keras's stateful API over a pure transformation. It contains no algorithm."""

import functools
import importlib
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

from ...core.ranges import unread
from ...core.transformation import GradientTransformation
from ...transforms.clipping.clip import clip, clip_by_global_norm, clip_by_norm
from ...transforms.combining.chain import chain
from ..variables.variable import Variable
from . import schedules
from .configs import as_arguments, within
from .custom import Custom
from .graph_mode import users_level
from .hyper import not_negative, present
from ..engine.imperative import imperative
from ..engine.replicas import AxisName
from ..engine.rows import RowMode
from ..engine.step import OptimizerStep, StepInputs, decayed
from .stepping import GradsAndVars

NO_RATE: Any = object()
"""Stands for the learning rate of an optimizer without one."""
Dialect = Literal["keras2", "keras3"]
CLIPS = "clipvalue", "clipnorm", "global_clipnorm"
NOT_NEGATIVE = {*CLIPS, "weight_decay", "epsilon"}
EPSILON = 1e-7
"""Keras's default epsilon, also used if epsilon is 0 or None."""


class Optimizer(Custom):
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

    row_mode: RowMode = "all"
    """The way sparse gradients are applied: see `rows`."""
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
                raise TypeError(f"Unexpected keyword argument passed to optimizer: {key}")
        if use_ema and not 0 <= ema_momentum <= 1:
            raise ValueError(f"`ema_momentum` must be in the range [0, 1]. Received: ema_momentum={ema_momentum}")
        _at_least("ema_overwrite_frequency", ema_overwrite_frequency, 1)
        _at_least("gradient_accumulation_steps", gradient_accumulation_steps, 2)
        if dialect not in ("keras2", "keras3"):
            raise ValueError(f"dialect must be 'keras2' or 'keras3', got {dialect!r}")
        if "lr" in kwargs:
            warnings.warn("The `lr` argument is deprecated, use `learning_rate` instead.", stacklevel=users_level())
            not_negative("lr", learning_rate := kwargs["lr"])
        self._name, self.dialect = name or _default_name(type(self).__name__, dialect), dialect
        self.gradient_aggregator, self.axis_name = gradient_aggregator, axis_name
        self.gradient_transformers = list(gradient_transformers or [])
        self.clipvalue, self.clipnorm, self.global_clipnorm = clipvalue, clipnorm, global_clipnorm
        self.weight_decay, self.loss_scale_factor = weight_decay, loss_scale_factor
        self.use_ema, self.ema_momentum, self.ema_overwrite_frequency = use_ema, ema_momentum, ema_overwrite_frequency
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self._undecayed: list[tuple[dict[int, Variable], list[str]]] = []
        if learning_rate is not NO_RATE:
            self._set_hyper("learning_rate", learning_rate)
        self._set_hyper("decay", kwargs.get("decay", 0.0))
        self._start()

    @property
    def __class__(self) -> Any:
        """The class. If the real Keras asks, as `compile` does, the optimizer first becomes one of Keras's, too."""
        asking = sys._getframe(1).f_globals.get("__name__", "")
        if asking.startswith("keras."):
            return importlib.import_module("functional_opt.interop.keras_optimizers").asked_by_keras(self, asking)
        return type(self)

    @property
    def name(self) -> str:
        return self._name

    def __setattr__(self, name: str, x: Any) -> None:
        if name in NOT_NEGATIVE:
            not_negative(name, x)
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

    # What a subclass defines

    def transform(self, hyper: Any) -> GradientTransformation:
        """Returns the transformation for these hyperparameters: `hyper.learning_rate` is an array or a schedule."""
        if self._is_custom:
            known = vars(_blank())
            plain = int | float | str | None
            constants = ((k, x) for k, x in self.__dict__.items() if k not in known and isinstance(x, plain))
            return imperative(self, tuple(constants), vars(hyper))
        raise NotImplementedError(
            f"{type(self).__name__} must override transform(hyper), or _resource_apply_dense, or update_step"
        )

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

        Raises TypeError or ValueError, naming the entry, for an entry that the class does not accept.
        """
        config = as_arguments(cls, config)
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

    def _clips(self) -> list[tuple[Callable, Any]]:
        return [(clip, self.clipvalue), (clip_by_norm, self.clipnorm), (clip_by_global_norm, self.global_clipnorm)]

    def _numbers(self) -> StepInputs:
        """Returns the inputs of a step: transformations and numbers, with the present hyperparameters."""
        hyper = {name: present(x) for name, x in self._hyper.items()}
        if "learning_rate" in hyper and self._decays:
            hyper["learning_rate"] = decayed(hyper["learning_rate"], hyper["decay"])
        with unread():  # they were checked when assigned; checking them here would make the host wait at every step
            clips = chain(*(make(bound) for make, bound in self._clips() if bound is not None))
            rule = self.transform(SimpleNamespace(**hyper))
        return StepInputs(
            clips=clips,
            rule=rule,
            learning_rate=hyper.get("learning_rate"),
            weight_decay=self.weight_decay,
            loss_scale=self.loss_scale_factor,
            ema_momentum=self.ema_momentum if self.use_ema else None,
        )

    @property
    def _decays(self) -> bool:
        decay = self._hyper["decay"]
        return callable(decay) or float(decay) != 0

    def _plan(self, variables: Sequence[Variable]) -> OptimizerStep:
        """Returns the step of these variables, as the program is compiled for it."""
        key = lambda v: self._keys[id(v)]  # noqa: E731
        shrunk = [] if self.weight_decay is None else [key(v) for v in variables if self._decays_weight(v)]
        return OptimizerStep(
            constraints=tuple([(key(v), v.constraint) for v in variables if v.constraint is not None]),
            decayed=tuple(shrunk),
            rows="as they are" if self._is_custom else self.row_mode,
            accumulate=self.gradient_accumulation_steps,
            ema_overwrite=self.ema_overwrite_frequency,
            overwritten=tuple([key(v) for v in variables if v.overwrite_with_gradient]),
            keras3=self.dialect == "keras3",
        )

    def _decays_weight(self, v: Variable) -> bool:
        return not any(
            id(v) in ids or any(re.search(pattern, v.path) for pattern in names) for ids, names in self._undecayed
        )


@functools.cache
def _blank() -> Optimizer:
    """Returns an optimizer that has only the attributes common to all."""
    return Optimizer("blank")


SHARED: dict[str, Any] = {
    "weight_decay": None,
    "clipnorm": None,
    "global_clipnorm": None,
    "clipvalue": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
}
"""The shared arguments that are plain attributes, and their defaults, in the order of Keras 3's config."""


def _default_name(cls: str, dialect: Dialect) -> str:
    """Returns the name of the class as it is for Keras 2, in snake case for Keras 3."""
    return cls if dialect == "keras2" else re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls).lower()


def _at_least(name: str, x: int | None, least: int) -> None:
    if x is not None and (not isinstance(x, int) or x < least):
        raise ValueError(f"`{name}` must be an integer >= {least} or None. Received: {name}={x}")
