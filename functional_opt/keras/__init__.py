"""The stateful facade: Keras's optimizers on JAX. To port a script, change its import."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from ..core.names import no_attribute as _no_attribute
from . import optimizers as optimizers
from . import random as random
from .engine.function import function as function
from .optimizers import Optimizer as Optimizer
from .variables.gradients import value_and_grad as value_and_grad
from .variables.indexed_slices import IndexedSlices as IndexedSlices
from .variables.variable import Variable as Variable
from .within_keras import optimizers as _within_keras  # noqa: F401  so that the real Keras takes optimizers

if not _TYPE_CHECKING:  # to type checkers, it would make any name an attribute
    _OF_KERAS = (
        "take it from Keras 3 on JAX (KERAS_BACKEND=jax), whose models and callbacks work with these optimizers"
    )
    _ELSEWHERE = dict.fromkeys(
        "Input Model Sequential activations applications callbacks constraints datasets initializers layers losses "
        "metrics models ops preprocessing regularizers utils".split(),
        _OF_KERAS,
    ) | {
        "GradientTape": "JAX has no tapes: loss, grads = keras.value_and_grad(loss_fn, variables)",
        "backend": "to read or set a rate, use opt.learning_rate; to compute, jax.numpy",
        "mixed_precision": "wrap the optimizer in keras.optimizers.LossScaleOptimizer, or use Keras 3's model.fit",
    }

    def __getattr__(name: str):
        raise _no_attribute(__name__, name, _ELSEWHERE.get(name))
