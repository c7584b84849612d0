"""gradient_noise_scale, noise_scale: an estimate of the batch size beyond which larger batches gain little."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.leaves import cast_like
from ...core.norms import global_norm
from ...core.queries import find_one
from ...core.ranges import Decay, Positive
from ...core.schedule import is_concrete
from ...core.slots import Number
from ...core.transformation import GradientTransformation, transformation


class GradientNoiseScaleState(NamedTuple):
    """Moving averages of two estimates, which start at 0. `squared_norm`: |G|². `variance`: S."""

    squared_norm: Number
    variance: Number


@transformation
class gradient_noise_scale(GradientTransformation):
    """Estimates the gradients' noise scale, the batch size at which noise and gradient are equally large.

    The updates do not change. The estimates come from the squared norms of the gradients of small batches and of the
    large batch that they make up: |G|² = (B·|g_B|² − b·|g_b|²)/(B − b) and S = (|g_b|² − |g_B|²)/(1/b − 1/B).
    Both are averaged over time. Their ratio S/|G|² is what `noise_scale(state)` returns, and what `metrics` reports
    as `noise_scale`.

    |g_B|² is computed from the updates, which must be the mean over the large batch. |g_b|² is passed to `update` as
    `small_squared_norm`: that of one small batch, or the mean over several::

        microbatch(lambda p, x: (g := grad(p, x), global_norm(g) ** 2), 1, b, AccumulationType.MEAN)  # both in one
        jax.lax.pmean(global_norm(g) ** 2, "device")                       # before aggregate("device")
        tx.update(g, state, params, small_squared_norm=global_norm(g) ** 2)  # inside of MultiSteps, at each mini-step

    Args:
        small_batch: b, the number of examples behind a small gradient, > 0.
        large_batch: B, the number of examples behind the updates, > b.
        decay: of the averages, in [0, 1).

    Raises ValueError without `small_squared_norm`, or if B ≤ b. Estimates that are not finite are ignored.

    McCandlish, Kaplan, Amodei et al. 2018, arXiv:1812.06162, appendix A.1.

    >>> tx = gradient_noise_scale(1, 2)
    >>> grads, params = jnp.array([2.0, 4.0]), jnp.zeros([])
    >>> state = tx.init(params)
    >>> _, state = tx.update(jnp.mean(grads), state, small_squared_norm=jnp.mean(grads**2))
    >>> noise_scale(state).item()  # |G|² = 2·9 − 10, S = (10 − 9)/(1 − 1/2)
    0.25
    """

    small_batch: Positive
    large_batch: Positive
    decay: Decay = 0.99

    def __post_init__(self):
        if (
            is_concrete(self.small_batch)
            and is_concrete(self.large_batch)
            and not self.small_batch < self.large_batch
        ):
            raise ValueError(f"large_batch must be above small_batch={self.small_batch}, got {self.large_batch}")

    def init(self, params):
        return GradientNoiseScaleState(jnp.zeros([]), jnp.zeros([]))

    def update(self, updates, state, params=None, *, small_squared_norm: Any = None, **extra):
        if small_squared_norm is None:
            raise ValueError(
                "gradient_noise_scale needs the squared norm of small gradients: "
                "call update(updates, state, params, small_squared_norm=...)"
            )
        b, B, of_small, of_large = self.small_batch, self.large_batch, small_squared_norm, global_norm(updates) ** 2
        squared_norm = (B * of_large - b * of_small) / (B - b)
        variance = (of_small - of_large) / (1 / b - 1 / B)
        finite = jnp.isfinite(squared_norm) & jnp.isfinite(variance)

        def average(old, x):
            return cast_like(jnp.where(finite, self.decay * old + (1 - self.decay) * x, old), old)

        return updates, GradientNoiseScaleState(
            average(state.squared_norm, squared_norm), average(state.variance, variance)
        )

    def reported(self, state: GradientNoiseScaleState) -> dict[str, jax.Array]:
        """Returns what `with_metrics` records."""
        return {"noise_scale": noise_scale(state)}


def noise_scale(state: Any) -> jax.Array:
    """Returns S/|G|² in examples, from any state with one `gradient_noise_scale`; NaN while |G|² ≤ 0.

    Raises ValueError if there is none, or if there are several.

    >>> noise_scale(GradientNoiseScaleState(squared_norm=jnp.array(0.5), variance=jnp.array(16.0))).item()
    32.0
    """
    missing = "put gradient_noise_scale in the chain"
    squared_norm, variance = find_one(state, GradientNoiseScaleState, "noise_scale", missing)
    apart = squared_norm > 0
    return jnp.where(apart, jnp.maximum(variance, 0.0) / jnp.where(apart, squared_norm, 1.0), jnp.nan)
