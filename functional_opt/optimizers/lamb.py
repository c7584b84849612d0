"""LAMB: Adam with a trust ratio for each leaf."""

from ..core.checks import checked
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative
from ..core.schedule import Rate
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from ..transforms.scaling.trust_ratio import scale_by_trust_ratio
from .adam import scale_by_adam


@checked
def lamb(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    eps_root: NonNegative = 0.0,
    weight_decay: Rate = 0.0,
    mask: Mask | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """LAMB: w ← w − learning_rate · ‖w‖ / ‖r‖ · r with r = m̂ / (√v̂ + eps) + weight_decay · w, leaf by leaf.

    See `scale_by_adam`, `add_decayed_weights` and `scale_by_trust_ratio` for the terms and arguments.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count. It is the length of a leaf's step
            relative to the leaf's norm.

    You et al. 2019, arXiv:1904.00962.

    >>> tx = lamb(0.1)
    >>> u, _ = tx.update({"w": 2.0}, tx.init({"w": 5.0}), {"w": 5.0})
    >>> round(u["w"].item(), 3)
    -0.5

    Differs from Keras, which applies the decay outside the trust ratio.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, state_dtype=state_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )
