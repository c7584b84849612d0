"""Adam, AdamW, Adamax and Nadam: their arguments, slots and transformations."""

from collections.abc import Sequence
from typing import Any

from ...core.schedule import Schedule
from ...optimizers.adam import scale_by_adam
from ...optimizers.adamax import scale_by_adamax
from ...optimizers.amsgrad import scale_by_amsgrad
from ...optimizers.nadam import scale_by_nadam
from ...transforms.combining.chain import chain
from ...transforms.scaling.learning_rate import scale_by_learning_rate
from .optimizer import EPSILON, Optimizer
from .configs import as_arguments
from .schedules import LearningRateSchedule


class TwoMoments(Optimizer):
    """Base of Adam and its relatives: takes a learning rate, the decay of two running means, and an epsilon."""

    settings = ("epsilon",)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: float | None = EPSILON,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self._set_hyper("beta_1", beta_1)
        self._set_hyper("beta_2", beta_2)
        self.epsilon = epsilon or EPSILON


class Adam(TwoMoments):
    """p ← p − learning_rate · √(1 − β₂ᵗ)/(1 − β₁ᵗ) · m / (√v + ε), m and v running means of g and g².

    Args:
        learning_rate: a number, a schedule, or a callable.
        beta_1, beta_2: decay of the means, in [0, 1).
        epsilon: ε, which is Kingma & Ba's ε̂; 0 or None means 1e-7.
        amsgrad: whether v̂ = max(v̂, v) is used in place of v.
        name, kwargs: as in `Optimizer`.

    Slots: m, v, vhat (with amsgrad). Kingma & Ba 2014, arXiv:1412.6980; Reddi et al. 2018, arXiv:1904.09237.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = Adam(0.1).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    0.9
    """

    slots = ({"m": "mu"}, {"v": "nu"}, {"vhat": "nu_max"})
    keras3_slots = ({"momentum": "mu", "velocity": "nu"}, {"velocity_hat": "nu_max"})
    settings = ("epsilon", "amsgrad")

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: float | None = EPSILON,
        amsgrad: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(learning_rate, beta_1, beta_2, epsilon, name, **kwargs)
        self.amsgrad = amsgrad

    def transform(self, hyper):
        numbers = hyper.beta_1, hyper.beta_2, self.epsilon
        if self.amsgrad:
            rule = scale_by_amsgrad(*numbers, eps_hat=True, max_before_correction=True)
        else:
            rule = scale_by_adam(*numbers, eps_hat=True)
        return chain(rule, scale_by_learning_rate(hyper.learning_rate))

    def _of_older_generations(self, weights: Sequence[Any]) -> Sequence[Any]:
        n = (len(self.weights) - 1) // 2  # Keras 1 kept a third, unused slot for each variable
        return weights[: 2 * n + 1] if not self.amsgrad and len(weights) == 3 * n + 1 else weights


class AdamW(Adam):
    """Adam with p ← p − weight_decay · learning_rate · p before each update. Keras 3 only ("keras3" dialect).

    Args:
        learning_rate: a number, a schedule, or a callable.
        weight_decay: a number ≥ 0; see `exclude_from_weight_decay`.
        beta_1, beta_2, epsilon, amsgrad, name, kwargs: as in `Adam`.

    Slots: momentum, velocity, velocity_hat. Loshchilov & Hutter 2017, arXiv:1711.05101.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = AdamW(0.1, weight_decay=0.5).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    0.85
    """

    default_dialect = "keras3"

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: float | None = 0.004,
        beta_1: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: float | None = EPSILON,
        amsgrad: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ):
        if weight_decay is None:
            raise ValueError("Argument `weight_decay` must be a float. Received: weight_decay=None")
        super().__init__(learning_rate, beta_1, beta_2, epsilon, amsgrad, name, weight_decay=weight_decay, **kwargs)


class Adamax(TwoMoments):
    """p ← p − learning_rate / (1 − β₁ᵗ) · m / (v + ε) with v ← max(β₂·v, |g|), m a running mean of g.

    Args:
        learning_rate: a number, a schedule, or a callable.
        beta_1, beta_2: decay of m and v, in [0, 1).
        epsilon: ε; 0 or None means 1e-7.
        name, kwargs: as in `Optimizer`.

    Slots: m, v. Kingma & Ba 2014, arXiv:1412.6980, section 7.1.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = Adamax(0.1).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    0.9
    """

    slots = ({"m": "mu"}, {"v": "nu"})
    keras3_slots = ({"momentum": "mu", "norm": "nu"},)
    row_mode = "touched"

    def transform(self, hyper):
        rule = scale_by_adamax(hyper.beta_1, hyper.beta_2, self.epsilon, eps_in_max=False)
        return chain(rule, scale_by_learning_rate(hyper.learning_rate))


class Nadam(TwoMoments):
    """Adam with Nesterov's momentum, which is warmed up. See `scale_by_nadam` for the rule.

    Args:
        learning_rate: a number or a callable; a schedule only in the "keras3" dialect.
        beta_1, beta_2: decay of the means, in [0, 1).
        epsilon: ε; 0 or None means 1e-7.
        name, kwargs: as in `Optimizer`. In the "keras2" dialect `schedule_decay`, by default 0.004, sets how
            fast the momentum warms up. It overwrites a `decay` that is passed, as in Keras.

    Slots: m, v. Dozat 2016, Incorporating Nesterov Momentum into Adam.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = Nadam(0.1).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    0.894
    """

    slots = ({"m": "mu"}, {"v": "nu"})
    keras3_slots = ({"momentum": "mu", "velocity": "nu"},)
    row_mode = "slots_all"
    scalars = {"momentum_cache": "momentum_product"}

    def __init__(self, *args: Any, schedule_decay: float = 0.004, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.dialect == "keras2":
            self._set_hyper("decay", schedule_decay)

    def _set_hyper(self, name, x):
        if self.dialect == "keras2" and isinstance(x, LearningRateSchedule | Schedule):
            raise ValueError(f"The Nadam optimizer does not support a schedule as its {name} in the 'keras2' dialect")
        super()._set_hyper(name, x)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Returns the optimizer, as in `Optimizer`. Reads `decay` as the momentum's, which Keras loses."""
        config = as_arguments(cls, config)
        if config.get("dialect", cls.default_dialect) == "keras2" and "decay" in config:
            config["schedule_decay"] = config.pop("decay")
        return super().from_config(config, custom_objects)

    @property
    def _decays(self) -> bool:
        return False  # `decay` is the momentum's here

    def transform(self, hyper):
        warmth = hyper.decay if self.dialect == "keras2" else 1.0
        rule = scale_by_nadam(hyper.beta_1, hyper.beta_2, self.epsilon, warmth)
        return chain(rule, scale_by_learning_rate(hyper.learning_rate))
