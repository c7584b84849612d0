"""Cases of what looks at a gradient before it is used: clips with a memory, guards, loss scales, widths."""

from typing import Any

import functional_opt as fo
from functional_opt.core.transformation import Transformation

from .case import case


@fo.transformation
class with_small_norms(fo.GradientTransformation):
    """Gives a transformation the squared norm of small gradients: here twice that of the large one, and 1."""

    inner: Transformation

    def init(self, params):
        return self.inner.init(params)

    def update(self, updates, state, params=None, **extra):
        small = 1 + 2 * fo.global_norm(updates) ** 2
        return self.inner.update(updates, state, params, **(extra | {"small_squared_norm": small}))


@fo.transformation
class with_logits(fo.GradientTransformation):
    """Gives a transformation the largest logits of an attention."""

    inner: Transformation

    def init(self, params):
        return self.inner.init(params)

    def update(self, updates, state, params=None, **extra):
        return self.inner.update(updates, state, params, **(extra | {"max_logits": {"dense": 150.0}}))


def without_spikes(rate: float, factor: float) -> Any:
    return fo.skip_spikes(fo.adam(rate), factor, window=3, warmup_steps=1, max_consecutive_skips=2)


def loss_scaled(rate: float, initial_scale: float) -> Any:
    return fo.dynamic_loss_scale(fo.adam(rate), initial_scale, growth_interval=2)


def bounded(threshold: float) -> Any:
    return with_logits(fo.qk_clip({"**/kernel": 0.5}, threshold))


def measured(**args: Any) -> Any:
    return with_small_norms(fo.gradient_noise_scale(**args))


BATCHES = {"small_batch": 2.0, "large_batch": 8.0}
WIDTHS = {"**/kernel": (2, 2), "**": None}

OPTIMIZERS = []

TRANSFORMATIONS = [
    case("zclip", fo.zclip, None, None, "decay z_threshold eps", z_threshold=0.5, warmup_steps=2, decay=0.9),
    case("adagc", fo.adagc, None, None, "relative absolute decay", warmup_steps=1, decay=0.9),
    case("clip_by_quantile", fo.clip_by_quantile, None, None, "quantile", quantile=0.3, window=3),
    case("skip_spikes", without_spikes, None, None, "rate factor", rate=0.1, factor=1.1),
    case("dynamic_loss_scale", loss_scaled, None, None, "rate initial_scale", rate=0.1, initial_scale=4.0),
    case("qk_clip", bounded, None, None, "threshold", threshold=100.0),
    case("scale_by_mup", fo.scale_by_mup, None, None, base_params=WIDTHS, fan_in={"**/kernel": (0,)}),
    case("gradient_noise_scale", measured, None, None, "decay", **BATCHES, decay=0.9),
]
