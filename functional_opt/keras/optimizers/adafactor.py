"""Adafactor, which exists only in Keras 3: its arguments, slots and transformation."""

from typing import Any

import jax
import jax.numpy as jnp

from ...core.ranges import Range
from ...optimizers.adafactor import relative_step, scale_by_factored_rms
from ...transforms.clipping.clip import clip_by_block_rms
from ...transforms.combining.chain import chain
from ...transforms.scaling.learning_rate import scale_by_learning_rate
from ...transforms.scaling.trust_ratio import scale_by_param_block_rms
from ..engine.views import Derived
from .optimizer import Optimizer


class Adafactor(Optimizer):
    """p ← p − ρ · max(RMS(p), ε₂) · u / max(1, RMS(u) / clip_threshold), u = g / √V. See `scale_by_factored_rms`.

    Args:
        learning_rate: a number, a schedule, or a callable.
        beta_2_decay: the exponent with which the decay of V tends to 1, ≤ 0.
        epsilon_1: added to g², ≥ 0.
        epsilon_2: the lower bound on the root mean square of p, ≥ 0.
        clip_threshold: the upper bound on the root mean square of u, > 0.
        relative_step: as in Keras, without effect: ρ is min(learning_rate, 1/√t) in either case.
        name, kwargs: as in `Optimizer`.

    Slots: r, c (means over the last two axes, for variables that have them), v (for the others).
    Shazeer & Stern 2018, arXiv:1804.04235. Keras keeps all three for every variable. The list of weights includes
    all three: v = r·c / mean(r) is computed where Keras stores it, and an r or c that is not used is 0.

    >>> from functional_opt import keras
    >>> v = keras.Variable([3.0, 4.0], name="v")
    >>> _ = Adafactor(0.1).minimize(lambda: v**2, [v])
    >>> v.numpy().round(3).tolist()
    [2.6459999084472656, 3.6459999084472656]
    """

    default_dialect = "keras3"
    slots = ({"r": "v_row", "c": "v_col", "v": "v"},)
    settings = ("beta_2_decay", "epsilon_1", "epsilon_2", "clip_threshold", "relative_step")
    ranges = {
        "beta_2_decay": Range("(-inf, 0]"),
        "epsilon_1": Range("[0, inf)"),
        "epsilon_2": Range("[0, inf)"),
        "clip_threshold": Range("(0, inf]"),
    }

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_2_decay: float = -0.8,
        epsilon_1: float = 1e-30,
        epsilon_2: float = 1e-3,
        clip_threshold: float = 1.0,
        relative_step: bool = True,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name, learning_rate=learning_rate, **kwargs)
        self.beta_2_decay, self.epsilon_1, self.epsilon_2 = beta_2_decay, epsilon_1, epsilon_2
        self.clip_threshold, self.relative_step = clip_threshold, relative_step

    def _weights_of(self, key, group):
        variable = self._single_engine().store.variables[key]
        r, c, v = (self.get_slot(variable, name) for name in "rcv")
        r._name = c._name = f"{self._name}/{key}"  # as in Keras
        v._name = f"{self._name}/{key}_velocity"

        def reconstructed() -> jax.Array:
            rows, columns = r._value[..., None], c._value[..., None, :]
            mean = jnp.mean(rows, axis=-2, keepdims=True)
            return rows * columns / jnp.where(mean == 0, 1.0, mean)

        if variable.ndim >= 2:
            yield from (r, c, Derived(reconstructed, v.path))
        else:
            yield from (Derived(lambda: jnp.zeros((), jnp.int32), key) for _ in (r, c))
            yield v

    def transform(self, hyper):
        factored = scale_by_factored_rms(
            decay_rate=-self.beta_2_decay, min_dim_size_to_factor=1, epsilon=self.epsilon_1, factored_axes="last"
        )
        size, rate = scale_by_param_block_rms(self.epsilon_2), relative_step(hyper.learning_rate)
        return chain(factored, clip_by_block_rms(self.clip_threshold), size, scale_by_learning_rate(rate))
