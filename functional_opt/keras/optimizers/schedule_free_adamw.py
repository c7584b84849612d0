"""ScheduleFreeAdamW, which exists only in Keras 3: its arguments, slots and transformation."""

from typing import Any

import jax.numpy as jnp

from ...core.ranges import Integer, PositiveInt, Range
from ...core.schedule import Rate, Schedule, rate_at
from ...core.transformation import GradientTransformation, increment, transformation
from ...core.value import value
from ...optimizers.rmsprop import scale_by_rms
from ...optimizers.schedule_free import schedule_free, schedule_free_eval_params
from ...transforms.combining.chain import chain
from ...transforms.scaling.learning_rate import scale_by_learning_rate
from ..engine.by_variable import ByVariable
from ..variables.foreign import all_ours
from .arguments import or_default
from .optimizer import Optimizer


class ScheduleFreeAdamW(Optimizer):
    """Adam with averaging instead of a schedule. A case of `schedule_free`; see there for the rule.

    Args:
        learning_rate: a number, a schedule, or a callable.
        beta_1: the weight of the average in the variables' values, in (0, 1]. With 0 they would not show the average.
        beta_2: decay of the second moment, in [0, 1).
        epsilon: added outside the root; 0 or None means 1e-8.
        warmup_steps: steps over which the learning rate grows from 1/warmup_steps of its value.
        name, kwargs: as in `Optimizer`.

    Slots: momentum (z, the variables without averaging), velocity. Defazio et al. 2024, arXiv:2405.15682.
    All steps weigh the same, and `iterations` counts them: a number assigned to it changes the weight of the next.

    >>> from functional_opt import keras
    >>> v = keras.Variable(1.0, name="v")
    >>> _ = ScheduleFreeAdamW(0.1).minimize(lambda: v**2, [v])
    >>> round(float(v), 3)
    0.9
    """

    default_dialect = "keras3"
    slots = ({"momentum": "z", "velocity": "nu"},)
    settings = ("epsilon", "warmup_steps")
    ranges = {"beta_1": Range("(0, 1]"), "epsilon": Range("[0, inf)"), "warmup_steps": Integer("[0, inf)")}

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
        self.epsilon, self.warmup_steps = or_default(epsilon, 1e-8), warmup_steps

    def averaged_params(self, var_list=None):
        """Returns the averages x, to evaluate with. The gradients are taken at other values."""
        given = self._engine.known() if var_list is None else all_ours(var_list)
        store = self._single_engine().store
        if store.state is None:
            return [v._value for v in given]
        everything = ByVariable((key, v._value) for key, v in store.variables.items())
        x = schedule_free_eval_params(store.state.inner, everything)
        return [x[store.keys[id(v)]] for v in given]

    def transform(self, hyper):
        rate = hyper.learning_rate
        rate = _warmed_up(rate, self.warmup_steps) if self.warmup_steps else rate
        rms = scale_by_rms(hyper.beta_2, self.epsilon, eps_in_sqrt=False, bias_correction=True)
        base = chain(rms, scale_by_learning_rate(rate))
        return _counted(schedule_free(base, rate, hyper.beta_1, weight_lr_power=0.0))


@transformation
class _counted(GradientTransformation):
    """Averages with c = 1 / (count + 1), where the count is that of the base optimizer's first link.

    This is `schedule_free` with equal weights. But the count follows `iterations` when a number is assigned to it,
    and as in Keras the average goes on as if that number of steps had been taken.
    """

    rule: schedule_free

    def init(self, params):
        return self.rule.init(params)

    def update(self, updates, state, params=None, **extra):
        count = state.base_optimizer_state[0].count
        state = state._replace(step_count=increment(count), weight_sum=count.astype(state.weight_sum.dtype))
        return self.rule.update(updates, state, params, **extra)


@value
class _warmed_up(Schedule):
    """rate · min(1, (count + 1) / steps)."""

    rate: Rate
    steps: PositiveInt

    def __call__(self, count):
        return rate_at(self.rate, count) * jnp.minimum(1.0, (count + 1) / self.steps)
