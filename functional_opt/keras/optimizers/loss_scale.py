"""LossScaleOptimizer: training in float16 with a dynamic loss scale."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...transforms.wrapping.loss_scale import next_scale
from ..variables.variable import Variable
from .optimizer import SHARED, Optimizer
from .configs import within
from .serialization import deserialize, serialize
from ..engine.step import Step
from .wrapper import Wrapper, divided, refuse_loss_scale, required_entry


class Scaling(NamedTuple):
    """The loss scale (`scale`), and the number of steps since it was changed (`counter`)."""

    counter: jax.Array
    scale: jax.Array


@dataclass(frozen=True)
class Scaled(Step):
    """A step that is skipped unless all gradients are finite. Its state is a `Scaling`, then the inner state."""

    inner: Step
    growth_steps: int

    def __call__(self, numbers, values, state, clock, idle, grads):
        scaling, inner = state
        grads = divided(grads, scaling.scale)
        floats = [g for g in jax.tree.leaves(grads) if jnp.issubdtype(g.dtype, jnp.inexact)]
        finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(g)) for g in floats]))
        values, inner, clock = jax.lax.cond(
            finite,
            lambda: self.inner(numbers, values, inner, clock, idle, grads),
            lambda: (values, inner, clock),
        )
        return values, (self._adjusted(scaling, finite), inner), clock

    def _adjusted(self, scaling: Scaling, finite: jax.Array) -> Scaling:
        smallest = float(jnp.finfo(scaling.scale.dtype).tiny)
        scale, counter = next_scale(scaling.scale, scaling.counter, finite, self.growth_steps, smallest)
        return Scaling(counter, scale)


class LossScaleOptimizer(Wrapper):
    """Multiplies the loss and divides the gradients, so that small gradients do not vanish in float16.

    g ← g / s. If all g are finite, the inner optimizer takes its step, and s doubles after
    `dynamic_growth_steps` such steps in a row. If not, the step is skipped and s is halved.
    `minimize`, `compute_gradients` and `make_train_step` scale the loss themselves. Gradients that are computed
    elsewhere and given to `apply` or `apply_gradients` must be those of `scale_loss(loss)`.

    Args:
        inner_optimizer: an `Optimizer`, which does all clipping, decay and averaging.
        initial_scale: the loss scale at the start.
        dynamic_growth_steps: steps in a row with finite gradients after which the scale doubles, at least 1.
        name, axis_name: as in `Optimizer`.

    Raises TypeError unless `inner_optimizer` is an optimizer, ValueError for an argument that belongs to it.
    Micikevicius et al. 2017, arXiv:1710.03740. Differs from Keras on JAX, where only `stateless_apply` works.

    >>> from functional_opt import keras
    >>> v = keras.Variable([1.0, 2.0], name="v")
    >>> opt = LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=4.0)
    >>> opt.apply([jnp.array([4.0, jnp.inf])], [v])
    >>> v.numpy().tolist(), float(opt.dynamic_scale), int(opt.iterations)
    ([1.0, 2.0], 2.0, 0)
    """

    def __init__(
        self,
        inner_optimizer: Optimizer,
        initial_scale: float = 2.0**15,
        dynamic_growth_steps: int = 2000,
        name: str | None = None,
        **kwargs: Any,
    ):
        if not isinstance(inner_optimizer, Optimizer):
            raise TypeError(f"inner_optimizer must be an Optimizer, got {inner_optimizer!r}")
        refuse_loss_scale("inner_optimizer", inner_optimizer)
        for key in kwargs:
            if key in SHARED:
                raise ValueError(f"LossScaleOptimizer does not support `{key}`. Set it on the `inner_optimizer`.")
        if not initial_scale > 0:
            raise ValueError(f"initial_scale must be positive, got {initial_scale}")
        if not isinstance(dynamic_growth_steps, int) or dynamic_growth_steps < 1:
            raise ValueError(f"dynamic_growth_steps must be an integer >= 1, got {dynamic_growth_steps!r}")
        super().__init__(name, **kwargs)
        self.inner_optimizer, self._parts = inner_optimizer, [inner_optimizer]
        self.initial_scale, self.dynamic_growth_steps = initial_scale, dynamic_growth_steps
        self.step_counter = Variable(0, trainable=False, dtype=jnp.int32, name=f"{self._name}/step_counter")
        self.dynamic_scale = Variable(
            initial_scale, trainable=False, dtype=jnp.float32, name=f"{self._name}/dynamic_scale"
        )

    def _part_of(self, variable):
        return 0

    # Attributes of the inner optimizer

    @property
    def iterations(self) -> Variable:
        """The iterations of the inner optimizer: steps that were not skipped."""
        return self.inner_optimizer.iterations

    @iterations.setter
    def iterations(self, variable: Variable) -> None:
        self.inner_optimizer.iterations = variable

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the inner optimizer."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, x: Any) -> None:
        self.inner_optimizer.learning_rate = x

    def current_learning_rate(self):
        return self.inner_optimizer.current_learning_rate()

    # The scale

    def scale_loss(self, loss):
        """Multiplies the loss by the present scale."""
        return loss * self.dynamic_scale.value

    def _loss_scale(self, numbers, state):
        return state[0].scale

    def _gradients(self, pairs, variables, aggregate=True):
        inner = self.inner_optimizer
        if not (inner.gradient_aggregator or inner.gradient_transformers):
            return super()._gradients(pairs, variables, aggregate)
        # the user's functions get gradients of the loss itself
        s = self.dynamic_scale.value
        grads = super()._gradients([(divided(g, s), v) for g, v in pairs], variables, aggregate)
        return [divided(g, 1 / s) for g in grads]

    @property
    def _state(self) -> Any:
        return Scaling(self.step_counter._value, self.dynamic_scale._value), super()._state

    @_state.setter
    def _state(self, state: Any) -> None:
        if state is not None:
            (self.step_counter._value, self.dynamic_scale._value), inner = state
            Wrapper._state.__set__(self, inner)

    def _plan(self, variables):
        return Scaled(super()._plan(variables), self.dynamic_growth_steps)

    def _store(self, state, clock):
        (self.step_counter._value, self.dynamic_scale._value), inner = state
        super()._store(inner, (self._iterations._value, *clock[1:]))  # Keras's outer iteration does not advance

    def _counters(self):
        return [*super()._counters(), self.step_counter, self.dynamic_scale]

    # Configs

    def get_config(self):
        return {
            "name": self._name,
            "inner_optimizer": serialize(self.inner_optimizer),
            "initial_scale": self.initial_scale,
            "dynamic_growth_steps": self.dynamic_growth_steps,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        inner, rest = required_entry(cls, "inner_optimizer", config)
        with within("inner_optimizer"):
            inner = deserialize(inner, custom_objects)
        return cls(inner, **rest)
