"""Muon, which exists only in Keras 3: its arguments, slots and transformation."""

import re
from collections.abc import Sequence
from typing import Any

from ...core.checks import Static
from ...core.ranges import Integer, OrNone, Range
from ...core.transformation import GradientTransformation
from ...core.value import value
from ...optimizers.adam import scale_by_adam
from ...transforms.combining.chain import chain
from ...transforms.combining.select import partition
from ...transforms.matrices.orthogonalize import orthogonalize, scale_by_shape
from ...transforms.scaling.learning_rate import scale, scale_by_learning_rate
from ...transforms.scaling.moments import trace
from ..engine.by_variable import ByVariable
from .arguments import or_default
from .optimizer import EPSILON, Optimizer


class Muon(Optimizer):
    """Muon for matrices, Adam for everything else. See `orthogonalize` and `scale_by_shape` for the rule.

    Args:
        learning_rate: a number, a schedule, or a callable.
        adam_beta_1, adam_beta_2, epsilon, adam_weight_decay: for the variables that Adam updates.
        weight_decay: for the matrices.
        exclude_layers: regular expressions; Adam updates a variable if one is found in its path.
        exclude_embeddings: whether Adam also updates variables with "embedding" in their path.
        muon_a, muon_b, muon_c, ns_steps: the polynomial of the orthogonalization, and the number of times it is
            applied.
        adam_lr_ratio: a factor on Adam's learning rate.
        momentum, nesterov: for the matrices' trace.
        rms_rate: the root mean square of an update per unit of learning rate; None leaves updates unscaled.
        name, kwargs: as in `Optimizer`.

    Slots: momentum; velocity (of Adam's variables). Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982.

    >>> import jax.numpy as jnp
    >>> from functional_opt import keras
    >>> kernel, bias = keras.Variable([[1.0, 0.0], [0.0, 1.0]], name="kernel"), keras.Variable([1.0], name="bias")
    >>> opt = Muon(0.1)
    >>> _ = opt.minimize(lambda: jnp.sum(kernel**2) + jnp.sum(bias**2), [kernel, bias])
    >>> opt.get_slot(bias, "velocity").shape, opt.routing()
    ((1,), {'kernel': 'muon', 'bias': 'adam'})
    """

    default_dialect = "keras3"
    slots = ({"momentum": ("trace", "mu"), "velocity": "nu"},)
    settings = (
        *("adam_beta_1", "adam_beta_2", "epsilon", "exclude_layers", "muon_a", "muon_b", "muon_c", "adam_lr_ratio"),
        *("momentum", "ns_steps", "nesterov", "exclude_embeddings", "adam_weight_decay", "rms_rate"),
    )
    ranges = {
        **dict.fromkeys(("adam_beta_1", "adam_beta_2"), Range("[0, 1)")),
        **dict.fromkeys(("epsilon", "adam_lr_ratio"), Range("[0, inf)")),
        **dict.fromkeys(("adam_weight_decay", "rms_rate"), OrNone("[0, inf)")),
        **dict.fromkeys(("muon_a", "muon_b", "muon_c"), Range("(-inf, inf)")),
        "momentum": Range("[0, 1]"),
        "ns_steps": Integer("[1, inf)"),
    }

    def __init__(
        self,
        learning_rate: Any = 0.001,
        adam_beta_1: float = 0.9,
        adam_beta_2: float = 0.999,
        epsilon: float | None = EPSILON,
        weight_decay: float | None = 0.004,
        name: str | None = None,
        *,
        exclude_layers: Sequence[str] | None = None,
        exclude_embeddings: bool = True,
        muon_a: float = 3.4445,
        muon_b: float = -4.7750,
        muon_c: float = 2.0315,
        adam_lr_ratio: float = 1,
        momentum: float = 0.95,
        ns_steps: int = 5,
        nesterov: bool = True,
        rms_rate: float | None = 0.2,
        adam_weight_decay: float | None = 0.004,
        **kwargs: Any,
    ):
        super().__init__(name, learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)
        self.adam_beta_1, self.adam_beta_2, self.epsilon = adam_beta_1, adam_beta_2, or_default(epsilon)
        self.exclude_layers, self.exclude_embeddings = list(exclude_layers or []), exclude_embeddings
        self.muon_a, self.muon_b, self.muon_c, self.ns_steps = muon_a, muon_b, muon_c, ns_steps
        self.adam_lr_ratio, self.adam_weight_decay, self.rms_rate = adam_lr_ratio, adam_weight_decay, rms_rate
        self.momentum, self.nesterov = momentum, nesterov

    def routing(self) -> dict[str, str]:
        """Returns "muon" or "adam" by path, for each variable that the optimizer has slots for."""
        return dict(self._labels()(self._single_engine().store.variables))

    def _labels(self) -> "_muon_or_adam":
        patterns = [*self.exclude_layers, *(["(?i)embedding"] if self.exclude_embeddings else [])]
        return _muon_or_adam(tuple(patterns))

    def transform(self, hyper):
        step = scale_by_learning_rate(hyper.learning_rate)
        adam = scale_by_adam(self.adam_beta_1, self.adam_beta_2, self.epsilon, eps_hat=True)
        matrices = [
            trace(self.momentum, self.nesterov),
            orthogonalize((self.muon_a, self.muon_b, self.muon_c), self.ns_steps, 1e-7),
            *([] if self.rms_rate is None else [scale_by_shape(self.rms_rate)]),
        ]
        both: dict[str, GradientTransformation] = {
            "adam": chain(adam, step, scale(self.adam_lr_ratio)),
            "muon": chain(*matrices, step),
        }
        return partition(both, self._labels())

    def _inputs(self, hyper):
        numbers = super()._inputs(hyper)
        rates = {"muon": numbers.weight_decay, "adam": self.adam_weight_decay}
        rates = {label: 0.0 if rate is None else rate for label, rate in rates.items()}
        by_path = {key: rates[label] for key, label in self.routing().items()}
        return numbers._replace(weight_decay=by_path)


@value
class _muon_or_adam:
    """Labels by path and shape: "muon" for matrices whose path contains none of the patterns, else "adam"."""

    patterns: Static[tuple[str, ...]] = ()

    def __call__(self, params: dict[str, Any]) -> ByVariable:
        return ByVariable((key, self._label(key, x)) for key, x in params.items())

    def _label(self, key: str, x: Any) -> str:
        excluded = any(re.search(pattern, key) for pattern in self.patterns)
        return "muon" if getattr(x, "ndim", 0) == 2 and not excluded else "adam"
