"""LossScaleOptimizer: training in float16 with a dynamic loss scale."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ...core.ranges import INT32_MAX, Integer, Range
from ..engine.scaled import ScaledEngine, Scaling, adjusted, all_finite
from ..engine.several import divided
from ..variables import recording
from ..variables.recording import BUSY
from ..variables.variable import Variable
from .configs import within
from .optimizer import Optimizer
from .overrides import DIFFERENTIATES, overrides
from .serialization import deserialize, serialize
from .shared import SHARED
from .wrapper import Wrapper, refuse_loss_scale, required_entry


class LossScaleOptimizer(Wrapper):
    """Multiplies the loss and divides the gradients, so that small gradients do not vanish in float16.

    g ← g / s. If all g are finite, the inner optimizer takes its step, and s doubles after
    `dynamic_growth_steps` such steps in a row. If not, the step is skipped and s is halved.
    `minimize`, `compute_gradients` and `make_train_step` scale the loss themselves. Gradients that are computed
    elsewhere and given to `apply` or `apply_gradients` must be those of `scale_loss(loss)`. After a call of
    `get_unscaled_gradients`, `apply_gradients` takes its results instead, as in tf.keras.

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

    ranges = {"initial_scale": Range("(0, inf)"), "dynamic_growth_steps": Integer(f"[1, {INT32_MAX}]")}

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
        if kwargs.pop("dynamic", True) is not True:
            raise ValueError(
                "LossScaleOptimizer finds the scale itself: dynamic must be True. For a fixed one use the inner "
                "optimizer alone, with loss_scale_factor=..."
            )
        for key in kwargs:
            if key in SHARED:
                raise ValueError(f"LossScaleOptimizer does not support `{key}`. Set it on the `inner_optimizer`.")
        self._parts, self._unscales = [inner_optimizer], False
        self.inner_optimizer, self.initial_scale = inner_optimizer, initial_scale
        self.dynamic_growth_steps = dynamic_growth_steps
        super().__init__(name, **kwargs)

    def _new_engine(self):
        self._own_iterations = self._own_count()
        self.step_counter = Variable(0, trainable=False, dtype=jnp.int32, name=f"{self._name}/step_counter")
        self.dynamic_scale = Variable(
            self.initial_scale, trainable=False, dtype=jnp.float32, name=f"{self._name}/dynamic_scale"
        )
        inner = self.inner_optimizer._engine
        self._scaled = ScaledEngine(inner, self.step_counter, self.dynamic_scale, int(self.dynamic_growth_steps))
        return self._scaled

    def __setattr__(self, name: str, x: Any) -> None:
        super().__setattr__(name, x)
        if name == "dynamic_growth_steps" and "_scaled" in self.__dict__:
            self._scaled.growth_steps = int(self.dynamic_growth_steps)

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

    @property
    def lr(self) -> Any:
        """The old name of `learning_rate`."""
        return self.learning_rate

    def current_learning_rate(self):
        return self.inner_optimizer.current_learning_rate()

    # The scale

    @property
    def loss_scale(self) -> jax.Array:
        """The present scale, under tf.keras's name; `dynamic_scale` is the variable that holds it."""
        return self.dynamic_scale.value

    @property
    def dynamic_counter(self) -> Variable:
        """The steps in a row with finite gradients, under tf.keras's name; Keras 3 has `step_counter`."""
        return self.step_counter

    def scale_loss(self, loss):
        """Multiplies the loss by the present scale."""
        return loss * self.dynamic_scale.value

    def get_scaled_loss(self, loss: Any) -> Any:
        """Multiplies the loss by the present scale, as tf.keras's method; of a function, what it returns."""
        if callable(loss) and not isinstance(loss, Variable):
            return lambda: self.scale_loss(loss())
        return self.scale_loss(loss)

    def get_unscaled_gradients(self, grads: Sequence[Any]) -> list[Any]:
        """Divides gradients of the scaled loss by the present scale; `apply_gradients` then takes the results.

        From the first call on, `apply_gradients` does not divide gradients itself: this is how tf.keras's loops are
        written. `minimize`, `make_train_step` and Keras 3's `apply` go on as before.
        """
        self._unscales = True
        scale = self.dynamic_scale.value
        return [None if g is None else divided(g, scale) for g in grads]

    def compute_gradients(self, loss, var_list=None, grad_loss=None, **how):
        if not overrides(type(self.inner_optimizer), *DIFFERENTIATES, "_transform_loss"):
            return super().compute_gradients(loss, var_list, grad_loss, **how)
        more = how if grad_loss is None else how | {"grad_loss": grad_loss}
        return self.inner_optimizer.compute_gradients(_Scaled(loss, self.scale_loss), var_list, **more)

    def minimize(self, loss, var_list=None, grad_loss=None, name=None, tape=None, **more):
        unscales, self._unscales = self._unscales, False
        try:
            return super().minimize(loss, var_list, grad_loss, name, tape, **more)
        finally:
            self._unscales = unscales

    def _apply_pairs(self, pairs, aggregate):
        with BUSY.lock:
            self._scaled.divided_before = self._unscales
            try:
                super()._apply_pairs(pairs, aggregate)
            finally:
                self._scaled.divided_before = False

    def apply(self, grads, trainable_variables=None):
        unscales, self._unscales = self._unscales, False
        try:
            super().apply(grads, trainable_variables)
        finally:
            self._unscales = unscales

    def _gradients(self, pairs, variables, aggregate=True):
        inner = self.inner_optimizer
        divided_before = self._scaled.divided_before
        if divided_before or not (inner.gradient_aggregator or inner.gradient_transformers):
            return super()._gradients(pairs, variables, aggregate)
        # the user's functions get gradients of the loss itself
        s = self.dynamic_scale.value
        grads = super()._gradients([(divided(g, s), v) for g, v in pairs], variables, aggregate)
        return [divided(g, 1 / s) for g in grads]

    def _step(self, grads, variables):
        if self._runs_code and not self._scaled.divided_before:
            grads = [None if g is None else divided(g, self.dynamic_scale.value) for g in grads]
        super()._step(grads, variables)

    def _take_step(self, grads, variables):
        if not self._runs_code:
            return super()._take_step(grads, variables)
        inner = self.inner_optimizer
        inner._engine.prepare([v for g, v in zip(grads, variables, strict=True) if g is not None])
        finite = all_finite(grads)
        pairs = list(zip(grads, variables, strict=True))
        done = recording.call(lambda: inner.apply_gradients(pairs), (), ())
        for cell, new in done.written.values():
            old = recording.content(cell)
            cell._value = jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, old)
        scaling = Scaling(self.step_counter.value, self.dynamic_scale.value)
        growth_steps = recording.depends_on(lambda: self.dynamic_growth_steps)
        self.step_counter._value, self.dynamic_scale._value = adjusted(scaling, finite, growth_steps)
        return None

    @property
    def _count(self):
        return self._own_iterations

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


class _Scaled:
    """A loss times the loss scale."""

    def __init__(self, loss: Callable[[], Any], scale: Callable[[Any], Any]):
        self._loss, self._scale = loss, scale

    def __call__(self) -> Any:
        return self._scale(self._loss())
