"""Muon and ScheduleFreeAdamW, which combine other rules and exist only in Keras 3."""

import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ...core.checks import Static
from ...core.ranges import PositiveInt
from ...core.schedule import Rate, Schedule, rate_at
from ...core.transformation import GradientTransformation
from ...core.value import value
from ...optimizers.adam import scale_by_adam
from ...optimizers.rmsprop import scale_by_rms
from ...optimizers.schedule_free import schedule_free, schedule_free_eval_params
from ...transforms.combining.chain import chain
from ...transforms.combining.select import partition
from ...transforms.matrices.orthogonalize import orthogonalize, scale_by_shape
from ...transforms.scaling.learning_rate import scale, scale_by_learning_rate
from ...transforms.scaling.moments import trace
from ..variables.foreign import all_ours
from .optimizer import EPSILON, Optimizer
from ..engine.by_variable import ByVariable


class Muon(Optimizer):
    """Muon for matrices, Adam for everything else. See `orthogonalize` and `scale_by_shape` for the rule.

    Args:
        learning_rate: a number, a schedule, or a callable.
        adam_beta_1, adam_beta_2, epsilon, adam_weight_decay: for the variables that Adam updates.
        weight_decay: for the matrices.
        exclude_layers: regular expressions; Adam updates a variable if one is found in its path.
        exclude_embeddings: whether Adam also updates variables with "embedding" in their path.
        muon_a, muon_b, muon_c, ns_steps: the polynomial of the orthogonalization, and the number of times it is
            applied.
        adam_lr_ratio: a factor on Adam's learning rate.
        momentum, nesterov: for the matrices' trace.
        rms_rate: the root mean square of an update per unit of learning rate; None leaves updates unscaled.
        name, kwargs: as in `Optimizer`.

    Slots: momentum; velocity (of Adam's variables). Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982.

    >>> from functional_opt import keras
    >>> kernel, bias = keras.Variable([[1.0, 0.0], [0.0, 1.0]], name="kernel"), keras.Variable([1.0], name="bias")
    >>> opt = Muon(0.1)
    >>> _ = opt.minimize(lambda: jnp.sum(kernel**2) + jnp.sum(bias**2), [kernel, bias])
    >>> opt.get_slot(bias, "velocity").shape, opt.routing()
    ((1,), {'kernel': 'muon', 'bias': 'adam'})
    """

    default_dialect = "keras3"
    slots = ({"momentum": ("trace", "mu"), "velocity": "nu"},)
    settings = (
        *("adam_beta_1", "adam_beta_2", "epsilon", "exclude_layers", "muon_a", "muon_b", "muon_c", "adam_lr_ratio"),
        *("momentum", "ns_steps", "nesterov", "exclude_embeddings", "adam_weight_decay", "rms_rate"),
    )

    def __init__(
        self,
        learning_rate: Any = 0.001,
        adam_beta_1: float = 0.9,
        adam_beta_2: float = 0.999,
        epsilon: float | None = EPSILON,
        weight_decay: float | None = 0.004,
        name: str | None = None,
        *,
        exclude_layers: Sequence[str] | None = None,
        exclude_embeddings: bool = True,
        muon_a: float = 3.4445,
        muon_b: float = -4.7750,
        muon_c: float = 2.0315,
        adam_lr_ratio: float = 1,
        momentum: float = 0.95,
        ns_steps: int = 5,
        nesterov: bool = True,
        rms_rate: float | None = 0.2,
        adam_weight_decay: float | None = 0.004,
        **kwargs: Any,
    ):
        super().__init__(name, learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)
        self.adam_beta_1, self.adam_beta_2, self.epsilon = adam_beta_1, adam_beta_2, epsilon or EPSILON
        self.exclude_layers, self.exclude_embeddings = list(exclude_layers or []), exclude_embeddings
        self.muon_a, self.muon_b, self.muon_c, self.ns_steps = muon_a, muon_b, muon_c, ns_steps
        self.adam_lr_ratio, self.adam_weight_decay, self.rms_rate = adam_lr_ratio, adam_weight_decay, rms_rate
        self.momentum, self.nesterov = momentum, nesterov

    def routing(self) -> dict[str, str]:
        """Returns "muon" or "adam" by path, for each variable that the optimizer has slots for."""
        return dict(self._labels()(self._variables))

    def _labels(self) -> "_muon_or_adam":
        patterns = [*self.exclude_layers, *(["(?i)embedding"] if self.exclude_embeddings else [])]
        return _muon_or_adam(tuple(patterns))

    def transform(self, hyper):
        step = scale_by_learning_rate(hyper.learning_rate)
        adam = scale_by_adam(self.adam_beta_1, self.adam_beta_2, self.epsilon, eps_hat=True)
        matrices = [
            trace(self.momentum, self.nesterov),
            orthogonalize((self.muon_a, self.muon_b, self.muon_c), self.ns_steps, 1e-7),
            *([] if self.rms_rate is None else [scale_by_shape(self.rms_rate)]),
        ]
        both: dict[str, GradientTransformation] = {
            "adam": chain(adam, step, scale(self.adam_lr_ratio)),
            "muon": chain(*matrices, step),
        }
        return partition(both, self._labels())

    def _numbers(self):
        numbers = super()._numbers()
        rates = {"muon": self.weight_decay or 0.0, "adam": self.adam_weight_decay or 0.0}
        by_path = {key: rates[label] for key, label in self.routing().items()}
        return numbers._replace(weight_decay=by_path)


@value
class _muon_or_adam:
    """Labels by path and shape: "muon" for matrices whose path contains none of the patterns, else "adam"."""

    patterns: Static[tuple[str, ...]] = ()

    def __call__(self, params: dict[str, Any]) -> ByVariable:
        return ByVariable((key, self._label(key, x)) for key, x in params.items())

    def _label(self, key: str, x: Any) -> str:
        excluded = any(re.search(pattern, key) for pattern in self.patterns)
        return "muon" if getattr(x, "ndim", 0) == 2 and not excluded else "adam"


class ScheduleFreeAdamW(Optimizer):
    """Adam with averaging instead of a schedule. A case of `schedule_free`; see there for the rule.

    Args:
        learning_rate: a number, a schedule, or a callable.
        beta_1: the weight of the average in the variables' values, in [0, 1).
        beta_2: decay of the second moment, in [0, 1).
        epsilon: added outside the root; 0 or None means 1e-8.
        warmup_steps: steps over which the learning rate grows from 1/warmup_steps of its value.
        name, kwargs: as in `Optimizer`.

    Slots: momentum (z, the variables without averaging), velocity. Defazio et al. 2024, arXiv:2405.15682.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = ScheduleFreeAdamW(0.1).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    0.9
    """

    default_dialect = "keras3"
    slots = ({"momentum": "z", "velocity": "nu"},)
    settings = ("epsilon", "warmup_steps")

    def __init__(
        self,
        learning_rate: Any = 0.0025,
        beta_1: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: float | None = 1e-8,
        warmup_steps: int = 0,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self._set_hyper("beta_1", beta_1)
        self._set_hyper("beta_2", beta_2)
        self.epsilon, self.warmup_steps = epsilon or 1e-8, warmup_steps

    def averaged_params(self, var_list=None):
        """Returns the averages x, to evaluate with. The gradients are taken at other values."""
        given = list(self._variables.values()) if var_list is None else all_ours(var_list)
        if self._state is None:
            return [v._value for v in given]
        everything = ByVariable((key, v._value) for key, v in self._variables.items())
        x = schedule_free_eval_params(self._state.inner, everything)
        return [x[self._keys[id(v)]] for v in given]

    def transform(self, hyper):
        rate = hyper.learning_rate
        rate = _warmed_up(rate, self.warmup_steps) if self.warmup_steps else rate
        rms = scale_by_rms(hyper.beta_2, self.epsilon, eps_in_sqrt=False, bias_correction=True)
        return schedule_free(chain(rms, scale_by_learning_rate(rate)), rate, hyper.beta_1, weight_lr_power=0.0)


@value
class _warmed_up(Schedule):
    """rate · min(1, (count + 1) / steps)."""

    rate: Rate
    steps: PositiveInt

    def __call__(self, count):
        return rate_at(self.rate, count) * jnp.minimum(1.0, (count + 1) / self.steps)
