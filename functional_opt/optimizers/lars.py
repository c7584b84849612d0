"""LARS: gradient descent with momentum and a trust ratio for each leaf."""

from ..core.checks import checked
from ..core.paths import Mask
from ..core.ranges import DType, Fraction, NonNegative
from ..core.schedule import Rate
from ..transforms.combining.chain import chain
from ..transforms.combining.select import masked
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from ..transforms.scaling.moments import trace
from ..transforms.scaling.trust_ratio import scale_by_trust_ratio


@checked
def lars(
    learning_rate: Rate,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask = True,
    trust_coefficient: NonNegative = 0.001,
    eps: NonNegative = 0.0,
    trust_ratio_mask: Mask = True,
    momentum: Fraction = 0.9,
    nesterov: bool = False,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """LARS: w ← w − t, t ← learning_rate · trust_coefficient · ‖w‖ / (‖d‖ + eps) · d + momentum·t.

    d = g + weight_decay · w, and norms are per leaf. See `scale_by_trust_ratio`, `trace` and `add_decayed_weights`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.
        weight_decay_mask: which leaves decay.
        trust_ratio_mask: which leaves have a trust ratio; biases and the scales of normalization layers are usually
            excluded.

    You, Gitman & Ginsburg 2017, arXiv:1708.03888.

    >>> tx = lars(1.0)
    >>> u, _ = tx.update({"w": 2.0}, tx.init({"w": 5.0}), {"w": 5.0})
    >>> round(u["w"].item(), 6)
    -0.005
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        masked(scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps), trust_ratio_mask),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov, state_dtype),
    )
