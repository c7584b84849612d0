"""to_keras: a gradient transformation as an optimizer of the real Keras, for `model.compile` and `fit`.

Optimizers of the facade need no adapter: see `keras.within_keras`.
"""

import contextlib
import functools
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..config import from_config, to_config
from ..core.apply import apply_updates
from ..core.schedule import Schedule
from ..core.transformation import GradientTransformation, as_transformation
from ..keras.engine.by_variable import ByVariable, keep_variables
from ..keras.optimizers import Optimizer
from ..keras.within_keras.optimizers import check_backend, join_keras, register_classes
from ..transforms.scaling.learning_rate import learning_rates, with_learning_rate
from .keras_states import from_keras as from_keras


def to_keras(tx: Any, learning_rate: Any = None, name: str = "functional_opt", **kwargs: Any) -> Any:
    """Returns a `keras.optimizers.Optimizer` that applies a gradient transformation. Keras must run on JAX.

    An optimizer of `functional_opt.keras.optimizers` is returned itself, as `compile` takes it as it is. Use a
    transformation as `model.compile(optimizer=to_keras(tx))`. Both work with fit, callbacks, mixed precision and
    `.keras` files, which include the state. To load such a file in another process, set KERAS_BACKEND=jax or import
    Keras, then import `functional_opt.interop`, which registers the optimizers with Keras.

    Args:
        tx: a transformation of this library or of Optax, or an optimizer of the facade, without other arguments.
        learning_rate: a number or a Keras schedule that replaces the rate of the `scale_by_learning_rate` links in
            `tx`. If None, the rate in `tx` is used. Callbacks can set it. It must be None if `tx` has no such link,
            or several with different rates.
        name, kwargs: as in Keras's `Optimizer`. Keras does the clipping, weight decay, averaging and accumulation.

    If the rate in `tx` is a schedule of this library, `learning_rate` can be read but not set, as with a schedule of
    Keras. If `tx` has no rate, or several, `learning_rate` reads as NaN.

    Raises ValueError for a `learning_rate`, or a `weight_decay`, which Keras multiplies by the rate, if `tx` has no
    rate or several; TypeError when setting a learning rate that cannot be set, and for arguments beside an optimizer
    of the facade; RuntimeError if Keras does not run on JAX.

        model.compile(to_keras(functional_opt.lion(1e-4, weight_decay=0.1)), loss="mse")
    """
    if isinstance(tx, Optimizer):
        if learning_rate is not None or name != "functional_opt" or kwargs:
            raise TypeError(f"give the other arguments to {type(tx).__name__} itself, not to to_keras")
        import keras  # noqa: F401  which `join_keras` looks for

        return join_keras(tx)
    return _optimizer_class()(tx, learning_rate, name=name, **kwargs)


class _Box:
    """Hides values that Keras would wrap and track if they were attributes of the optimizer."""

    def __init__(self, tx: GradientTransformation):
        rates = learning_rates(tx)
        self.tx, self.rate = tx, rates[0] if rates and all(rate == rates[0] for rate in rates) else None
        self.owns_rate = self.rate is None or isinstance(self.rate, Schedule)
        self.keys: dict[int, str] = {}
        self.slots: list[Any] = []
        self.treedef: Any = None


@functools.cache
def _optimizer_class() -> type:
    import keras

    class OwnRate(keras.optimizers.schedules.LearningRateSchedule):
        """Shows Keras the rate of a transformation that keeps its own: NaN if it has no rate, or several."""

        def __init__(self, rate: Any):
            self.rate = rate

        def __call__(self, step: Any) -> Any:
            return jnp.nan if self.rate is None else self.rate(keras.ops.convert_to_tensor(step))

        def get_config(self) -> dict[str, Any]:
            return {}

    @keras.saving.register_keras_serializable(package="functional_opt")
    class Transformation(keras.optimizers.Optimizer):
        """A Keras optimizer over a transformation, with one Keras variable for each array of its state."""

        def __init__(self, tx: Any, learning_rate: Any = None, name: str = "functional_opt", **kwargs: Any):
            check_backend()
            box = _Box(as_transformation(tx))
            if box.rate is None and learning_rate is not None:
                raise ValueError(
                    f"learning_rate was given, but {tx!r} has no rate to replace, or several: give it one "
                    "scale_by_learning_rate, or leave learning_rate out"
                )
            if box.rate is None and kwargs.get("weight_decay"):
                raise ValueError(
                    f"weight_decay is multiplied by the learning rate, but {tx!r} has no rate, or several: chain it "
                    "with functional_opt.add_decayed_weights instead"
                )
            if learning_rate is not None:
                box.owns_rate = False
            elif box.rate is None or isinstance(box.rate, Schedule):
                learning_rate = OwnRate(box.rate)
            else:
                learning_rate = float(np.asarray(box.rate))
            super().__init__(learning_rate=learning_rate, name=name, **kwargs)
            self._box = box

        @property
        def learning_rate(self) -> Any:
            """The rate of the next step."""
            return self._get_current_learning_rate()

        @learning_rate.setter
        def learning_rate(self, learning_rate: Any) -> None:
            if self._box.owns_rate:
                has = "no learning rate, or several" if self._box.rate is None else f"the schedule {self._box.rate!r}"
                raise TypeError(
                    f"learning_rate cannot be set: {self._box.tx!r} has {has}. Give it one scale_by_learning_rate "
                    "with a number, which callbacks can then set"
                )
            base: Any = keras.optimizers.Optimizer
            base.learning_rate.fset(self, learning_rate)

        def build(self, variables: Any) -> None:
            if self.built:
                return
            super().build(variables)
            box = self._box
            box.keys = {id(v): f"{i}/{v.path}" for i, v in enumerate(variables)}
            values = ByVariable((box.keys[id(v)], v.value) for v in variables)
            leaves, box.treedef = jax.tree.flatten_with_path(box.tx.init(values))
            for path, x in leaves:
                is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
                x = jax.random.key_data(x) if is_key else x
                slot = self.add_variable(x.shape, "zeros", dtype=str(x.dtype), name=_plain_name(path))
                slot.assign(x)
                box.slots.append((slot, is_key))

        def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
            box = self._box
            arrays = [jax.random.wrap_key_data(v.value) if is_key else v.value for v, is_key in box.slots]
            state = box.treedef.unflatten(arrays)
            params = {box.keys[id(v)]: v.value for v in self._trainable_variables}
            given = {box.keys[id(v)]: g for g, v in zip(grads, trainable_variables, strict=True)}
            still = params.keys() - given.keys()
            everything = ByVariable((key, given.get(key, jnp.zeros_like(x))) for key, x in params.items())
            tx = box.tx if box.owns_rate else with_learning_rate(box.tx, learning_rate)
            updates, new = tx.update(everything, state, ByVariable(params))
            new, moved = keep_variables(still, state, new), apply_updates(ByVariable(params), updates)
            for v in trainable_variables:
                v.assign(moved[box.keys[id(v)]])
            for (slot, is_key), x in zip(box.slots, jax.tree.leaves(new), strict=True):
                slot.assign(jax.random.key_data(x) if is_key else x)

        def get_config(self) -> dict[str, Any]:
            config = super().get_config() | {"tx": to_config(self._box.tx)}
            return config | {"learning_rate": None} if self._box.owns_rate else config

        @classmethod
        def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
            config = config | {"tx": from_config(config["tx"])}
            if isinstance(config["learning_rate"], dict):
                config["learning_rate"] = keras.optimizers.schedules.deserialize(config["learning_rate"])
            return cls(**config)

    return Transformation


def _plain_name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").replace("/", "_")


# So that a process that makes no optimizer can load `.keras` files. Keras must not be imported before its backend
# is chosen.
if "keras" in sys.modules or os.environ.get("KERAS_BACKEND") == "jax":
    with contextlib.suppress(ImportError):
        _optimizer_class()
        register_classes()
