"""Keras's optimizers: of each its arguments, its slot names, and the transformation they stand for."""

from typing import Any

from ...optimizers.adam import scale_by_adam, scale_by_amsgrad
from ...optimizers.rmsprop import scale_by_rms, scale_by_stddev
from ...transforms.chain import chain
from ...transforms.learning_rate import scale, scale_by_learning_rate
from ...transforms.moments import trace
from .base import Optimizer

EPSILON = 1e-7


def _has_momentum(momentum: Any) -> bool:
    """Whether there is a slot for momentum. How much of it there is can change later; this cannot."""
    if isinstance(momentum, int | float) and not 0 <= momentum <= 1:
        raise ValueError(f"`momentum` must be between [0, 1]. Received: momentum={momentum}")
    return not isinstance(momentum, int | float) or momentum > 0


class SGD(Optimizer):
    """p ← p + a with a ← momentum·a − learning_rate·g; with nesterov p ← p + momentum·a − learning_rate·g.

    Args:
        learning_rate: a number, a schedule, or a callable.
        momentum: in [0, 1]; 0 keeps no slot.
        nesterov: whether to look one step ahead; without momentum it changes nothing.
        name, kwargs: as in `Optimizer`.

    Slots: momentum (if there is any), which has the learning rate inside.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = SGD(0.1).minimize(lambda: v**2 / 2, [v])
    >>> round(float(v), 3)
    0.9
    """

    slot_fields = {"momentum": "trace"}

    def __init__(
        self, learning_rate: Any = 0.01, momentum: Any = 0.0, nesterov: bool = False, name: str = "SGD", **kwargs: Any
    ):
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self._has_momentum = _has_momentum(momentum)
        self._set_hyper("momentum", momentum)
        self.nesterov = nesterov

    def transform(self, hyper):
        step = scale_by_learning_rate(hyper.learning_rate)
        return chain(step, trace(hyper.momentum, nesterov=self.nesterov)) if self._has_momentum else step

    def get_config(self):
        return super().get_config() | {"nesterov": self.nesterov}


class RMSprop(Optimizer):
    """p ← p − learning_rate · g / (√(rms − mg²) + ε), rms and (if centered) mg running means of g² and g.

    With momentum: mom ← momentum·mom + learning_rate · g / √(rms − mg² + ε); p ← p − mom. Note where ε stands.

    Args:
        learning_rate: a number, a schedule, or a callable.
        rho: decay of the means, in [0, 1).
        momentum: in [0, 1]; 0 keeps no slot.
        epsilon: ε; 0 or None means 1e-7.
        centered: whether mg is subtracted.
        name, kwargs: as in `Optimizer`.

    Slots: rms, momentum, mg. Hinton 2012, lecture 6e.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = RMSprop(0.1).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    0.684
    """

    slot_fields = {"rms": "nu", "momentum": "trace", "mg": "mu"}

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: Any = 0.9,
        momentum: Any = 0.0,
        epsilon: float | None = EPSILON,
        centered: bool = False,
        name: str = "RMSprop",
        **kwargs: Any,
    ):
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self._has_momentum = _has_momentum(momentum)
        self._set_hyper("rho", rho)
        self._set_hyper("momentum", momentum)
        self.epsilon = epsilon or EPSILON
        self.centered = centered

    def transform(self, hyper):
        rule = scale_by_stddev if self.centered else scale_by_rms
        direction = rule(hyper.rho, self.epsilon, eps_in_sqrt=self._has_momentum)
        if not self._has_momentum:
            return chain(direction, scale_by_learning_rate(hyper.learning_rate))
        ascend = scale_by_learning_rate(hyper.learning_rate, flip_sign=False)
        return chain(direction, ascend, trace(hyper.momentum), scale(-1.0))

    def get_config(self):
        return super().get_config() | {"epsilon": self.epsilon, "centered": self.centered}


class Adam(Optimizer):
    """p ← p − learning_rate · √(1 − β₂ᵗ)/(1 − β₁ᵗ) · m / (√v + ε), m and v running means of g and g².

    Args:
        learning_rate: a number, a schedule, or a callable.
        beta_1, beta_2: decay of the means, in [0, 1).
        epsilon: ε, which is Kingma & Ba's ε̂; 0 or None means 1e-7.
        amsgrad: whether v̂ = max(v̂, v) stands in place of v.
        name, kwargs: as in `Optimizer`.

    Slots: m, v, vhat (with amsgrad). Kingma & Ba 2014, arXiv:1412.6980; Reddi et al. 2018, arXiv:1904.09237.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = Adam(0.1).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    0.9
    """

    slot_fields = {"m": "mu", "v": "nu", "vhat": "nu_max"}

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: float | None = EPSILON,
        amsgrad: bool = False,
        name: str = "Adam",
        **kwargs: Any,
    ):
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self._set_hyper("beta_1", beta_1)
        self._set_hyper("beta_2", beta_2)
        self.epsilon = epsilon or EPSILON
        self.amsgrad = amsgrad

    def transform(self, hyper):
        if self.amsgrad:
            rule = scale_by_amsgrad(
                hyper.beta_1, hyper.beta_2, self.epsilon, eps_hat=True, max_before_correction=True
            )
        else:
            rule = scale_by_adam(hyper.beta_1, hyper.beta_2, self.epsilon, eps_hat=True)
        return chain(rule, scale_by_learning_rate(hyper.learning_rate))

    def get_config(self):
        return super().get_config() | {"epsilon": self.epsilon, "amsgrad": self.amsgrad}
