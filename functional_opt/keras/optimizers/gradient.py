"""SGD, RMSprop, Adagrad, Adadelta and Ftrl: their arguments, slots and transformations."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...optimizers.adadelta import scale_by_adadelta
from ...optimizers.adagrad import scale_by_rss
from ...optimizers.ftrl import ftrl
from ...optimizers.rmsprop import scale_by_rms, scale_by_stddev
from ...transforms.combining.chain import chain
from ...transforms.scaling.learning_rate import scale, scale_by_learning_rate
from ...transforms.scaling.moments import trace
from .optimizer import EPSILON, Optimizer


def _has_momentum(momentum: Any) -> bool:
    """Returns whether to keep a slot for momentum. This is fixed, while the momentum's value can change later."""
    if isinstance(momentum, int | float) and not 0 <= momentum <= 1:
        raise ValueError(f"`momentum` must be between [0, 1]. Received: momentum={momentum}")
    return not isinstance(momentum, int | float) or momentum > 0


class _MayLackIteration(Optimizer):
    """Base of optimizers whose `set_weights` also accepts the lists of Keras 1, which began with the slots."""

    def _of_older_generations(self, weights: Sequence[Any]) -> Sequence[Any]:
        return [np.array(0), *weights] if len(weights) == len(self.weights) - 1 else weights


class SGD(Optimizer):
    """p ← p + a with a ← momentum·a − learning_rate·g; with nesterov p ← p + momentum·a − learning_rate·g.

    Args:
        learning_rate: a number, a schedule, or a callable.
        momentum: in [0, 1]; 0 keeps no slot.
        nesterov: whether to look one step ahead; without momentum it has no effect.
        name, kwargs: as in `Optimizer`.

    Slots: momentum (unless it is 0), which includes the learning rate.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = SGD(0.1).minimize(lambda: v**2 / 2, [v])
    >>> round(float(v), 3)
    0.9
    """

    slots = ({"momentum": "trace"},)
    row_mode = "touched"
    settings = ("nesterov",)

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: Any = 0.0,
        nesterov: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self._has_momentum = _has_momentum(momentum)
        self._set_hyper("momentum", momentum)
        self.nesterov = nesterov

    def transform(self, hyper):
        step = scale_by_learning_rate(hyper.learning_rate)
        return chain(step, trace(hyper.momentum, nesterov=self.nesterov)) if self._has_momentum else step


class RMSprop(_MayLackIteration):
    """p ← p − learning_rate · g / (√(rms − mg²) + ε), rms and (if centered) mg running means of g² and g.

    With momentum: mom ← momentum·mom + learning_rate · g / √(rms − mg² + ε); p ← p − mom. Note the
    place of ε; in the "keras3" dialect it is always inside the root.

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

    slots = ({"rms": "nu"}, {"momentum": "trace"}, {"mg": "mu"})
    keras3_slots = ({"velocity": "nu"}, {"momentum": "trace"}, {"average_gradient": "mu"})
    settings = ("epsilon", "centered")

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: Any = 0.9,
        momentum: Any = 0.0,
        epsilon: float | None = EPSILON,
        centered: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self._has_momentum = _has_momentum(momentum)
        self._set_hyper("rho", rho)
        self._set_hyper("momentum", momentum)
        self.epsilon = epsilon or EPSILON
        self.centered = centered
        self.row_mode = "touched" if self._has_momentum else "slots_all"

    def transform(self, hyper):
        rule = scale_by_stddev if self.centered else scale_by_rms
        inside = self._has_momentum or self.dialect == "keras3"
        direction = rule(hyper.rho, self.epsilon, eps_in_sqrt=inside)
        if not self._has_momentum:
            return chain(direction, scale_by_learning_rate(hyper.learning_rate))
        ascend = scale_by_learning_rate(hyper.learning_rate, flip_sign=False)
        return chain(direction, ascend, trace(hyper.momentum), scale(-1.0))


class Adagrad(_MayLackIteration):
    """p ← p − learning_rate · g / (√acc + ε) with acc ← acc + g²; ε inside the root in the "keras3" dialect.

    Args:
        learning_rate: a number, a schedule, or a callable.
        initial_accumulator_value: the initial value of acc, ≥ 0.
        epsilon: ε; 0 or None means 1e-7.
        name, kwargs: as in `Optimizer`.

    Slots: accumulator. Duchi, Hazan & Singer 2011, JMLR 12.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = Adagrad(0.1, initial_accumulator_value=0.0).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    0.9
    """

    slots = ({"accumulator": "sum_of_squares"},)
    row_mode = "touched"
    settings = ("initial_accumulator_value", "epsilon")

    def __init__(
        self,
        learning_rate: Any = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float | None = EPSILON,
        name: str | None = None,
        **kwargs: Any,
    ):
        if initial_accumulator_value < 0:
            raise ValueError(f"initial_accumulator_value must be non-negative: {initial_accumulator_value}")
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self.initial_accumulator_value = initial_accumulator_value
        self.epsilon = epsilon or EPSILON

    def transform(self, hyper):
        inside = self.dialect == "keras3"
        rule = scale_by_rss(self.initial_accumulator_value, self.epsilon, eps_in_sqrt=inside)
        return chain(rule, scale_by_learning_rate(hyper.learning_rate))


class Adadelta(_MayLackIteration):
    """p ← p − learning_rate · u with u = √(accum_var + ε) / √(accum_grad + ε) · g: running means of u² and g².

    Args:
        learning_rate: a number, a schedule, or a callable; the paper uses 1.0.
        rho: decay of the means, in [0, 1).
        epsilon: ε; 0 or None means 1e-7.
        name, kwargs: as in `Optimizer`.

    Slots: accum_grad, accum_var. Zeiler 2012, arXiv:1212.5701.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = Adadelta(1.0, rho=0.0).minimize(lambda: v**2 / 2, [v])
    >>> round(float(v), 5)
    0.99968
    """

    slots = ({"accum_grad": "e_g"}, {"accum_var": "e_x"})
    keras3_slots = ({"accumulated_grad": "e_g", "accumulated_delta_var": "e_x"},)
    row_mode = "touched"
    settings = ("epsilon",)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: Any = 0.95,
        epsilon: float | None = EPSILON,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self._set_hyper("rho", rho)
        self.epsilon = epsilon or EPSILON

    def transform(self, hyper):
        return chain(scale_by_adadelta(hyper.rho, self.epsilon), scale_by_learning_rate(hyper.learning_rate))


class Ftrl(Optimizer):
    """Follow the regularized leader: p minimizes a sum of the gradients so far and the penalties. See `ftrl`.

    Args:
        learning_rate: a number, a schedule, or a callable.
        learning_rate_power: ≤ 0; how fast the rate falls as the accumulator grows; 0 for a constant rate.
        initial_accumulator_value: the initial value of the accumulator, ≥ 0.
        l1_regularization_strength, l2_regularization_strength: ≥ 0.
        name: as in `Optimizer`.
        l2_shrinkage_regularization_strength: ≥ 0; an l2 penalty on the present p only.
        beta: ≥ 0; adds beta / (2 · learning_rate) to the l2 penalty.
        kwargs: as in `Optimizer`.

    Slots: accumulator, linear. McMahan et al. 2013, KDD. A weight whose first gradient is 0 becomes 0, as in Keras.

    >>> from functional_opt import keras
    >>> v = keras.Variable(0.0, name="v")
    >>> _ = Ftrl(0.1, l1_regularization_strength=5.0).minimize(lambda: (v - 1) ** 2, [v])
    >>> float(v)
    0.0
    """

    slots = ({"accumulator": "accumulator", "linear": "linear"},)
    row_mode = "touched"
    settings = ("initial_accumulator_value", "l2_shrinkage_regularization_strength")

    def __init__(
        self,
        learning_rate: Any = 0.001,
        learning_rate_power: Any = -0.5,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: Any = 0.0,
        l2_regularization_strength: Any = 0.0,
        name: str | None = None,
        l2_shrinkage_regularization_strength: float = 0.0,
        beta: Any = 0.0,
        **kwargs: Any,
    ):
        penalties = {
            "initial_accumulator_value": initial_accumulator_value,
            "l1_regularization_strength": l1_regularization_strength,
            "l2_regularization_strength": l2_regularization_strength,
            "l2_shrinkage_regularization_strength": l2_shrinkage_regularization_strength,
            "beta": beta,
        }
        for argument, x in penalties.items():
            if isinstance(x, int | float) and x < 0:
                raise ValueError(f"`{argument}` needs to be positive or zero. Received: {argument}={x}.")
        if isinstance(learning_rate_power, int | float) and learning_rate_power > 0:
            raise ValueError(
                "`learning_rate_power` needs to be negative or zero. "
                f"Received: learning_rate_power={learning_rate_power}."
            )
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self._set_hyper("learning_rate_power", learning_rate_power)
        self._set_hyper("l1_regularization_strength", l1_regularization_strength)
        self._set_hyper("l2_regularization_strength", l2_regularization_strength)
        self._set_hyper("beta", beta)
        self.initial_accumulator_value = initial_accumulator_value
        self.l2_shrinkage_regularization_strength = l2_shrinkage_regularization_strength

    def transform(self, hyper):
        return ftrl(
            hyper.learning_rate,
            hyper.learning_rate_power,
            self.initial_accumulator_value,
            hyper.l1_regularization_strength,
            hyper.l2_regularization_strength,
            self.l2_shrinkage_regularization_strength,
            hyper.beta,
        )
