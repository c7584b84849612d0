"""to_keras: a gradient transformation as an optimizer of the real Keras, for `model.compile` and `fit`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..base import GradientTransformation, apply_updates, as_transformation
from ..keras.optimizers.by_variable import ByVariable, keep
from ..transforms.learning_rate import learning_rates, with_learning_rate


def to_keras(tx: Any, learning_rate: Any = None, name: str = "functional_opt", **kwargs: Any) -> Any:
    """A `keras.optimizers.Optimizer` that does what a gradient transformation says. Keras must run on JAX.

    For `model.compile(optimizer=to_keras(tx))`: fit, callbacks, mixed precision, `.keras` files with the state.

    Args:
        tx: a transformation, of this library or of Optax.
        learning_rate: a number or a Keras schedule, taken in place of the rate of the one `scale_by_learning_rate` in
            `tx`, which is the default; callbacks that set it have effect. Where there is no such link, or there are
            several, `tx` keeps its own rates and this must be None.
        name, kwargs: of Keras's optimizer: clipping, weight decay, averaging and accumulation are Keras's own.

    Raises ValueError for a learning rate that has no place, RuntimeError where Keras runs on something else.

        model.compile(to_keras(functional_opt.lion(1e-4, weight_decay=0.1)), loss="mse")
    """
    import keras

    if keras.backend.backend() != "jax":
        raise RuntimeError(f"to_keras needs Keras on JAX, not on {keras.backend.backend()}; set KERAS_BACKEND=jax")
    return _optimizer_class()(tx, learning_rate, name=name, **kwargs)


class _Box:
    """Holds what Keras would wrap and track, were it an attribute."""

    def __init__(self, tx: GradientTransformation, rates: list[Any]):
        self.tx, self.owns_rate = tx, len(rates) != 1
        self.keys: dict[int, str] = {}
        self.slots: list[Any] = []
        self.treedef: Any = None


@functools.cache
def _optimizer_class() -> type:
    import keras

    @keras.saving.register_keras_serializable(package="functional_opt")
    class Transformation(keras.optimizers.Optimizer):
        """The optimizer of a transformation: one Keras variable for each array of its state."""

        def __init__(self, tx: Any, learning_rate: Any = None, name: str = "functional_opt", **kwargs: Any):
            tx = as_transformation(tx)
            rates = learning_rates(tx)
            box = _Box(tx, rates)
            if learning_rate is not None and box.owns_rate:
                raise ValueError(f"learning_rate has no place in {tx!r}: it needs one scale_by_learning_rate")
            given = rates[0] if learning_rate is None and not box.owns_rate else learning_rate
            if callable(given) and not isinstance(given, keras.optimizers.schedules.LearningRateSchedule):
                box.owns_rate, given = True, None  # a schedule of ours, which counts its own steps
            super().__init__(learning_rate=0.0 if given is None else given, name=name, **kwargs)
            self._box = box

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
            new, moved = keep(still, state, new), apply_updates(ByVariable(params), updates)
            for v in trainable_variables:
                v.assign(moved[box.keys[id(v)]])
            for (slot, is_key), x in zip(box.slots, jax.tree.leaves(new), strict=True):
                slot.assign(jax.random.key_data(x) if is_key else x)

        def get_config(self) -> dict[str, Any]:
            from ..config import to_config

            config = super().get_config() | {"tx": to_config(self._box.tx)}
            return config if not self._box.owns_rate else config | {"learning_rate": None}

        @classmethod
        def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
            from ..config import from_config

            config = config | {"tx": from_config(config["tx"])}
            if isinstance(config["learning_rate"], dict):
                config["learning_rate"] = keras.optimizers.schedules.deserialize(config["learning_rate"])
            return cls(**config)

    return Transformation


def _plain_name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").replace("/", "_")
