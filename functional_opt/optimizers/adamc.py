"""AdamC: AdamW with a weight decay that follows the learning rate's schedule."""

from ..core.checks import checked
from ..core.paths import Mask
from ..core.ranges import Decay, DType, NonNegative, Positive
from ..core.schedule import Rate
from ..schedules.pieces import proportional_schedule
from ..transforms.combining.chain import chain
from .adam import adamw


@checked
def adamc(
    learning_rate: Rate,
    peak_learning_rate: Positive,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.05,
    mask: Mask | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """AdamC: w ← w − γ · m̂ / (√v̂ + eps) − (γ² / γ_max) · weight_decay · w, with γ the learning rate of the step.

    A layer before a normalization settles where its gradient's norm is √(2 · weight_decay / γ) times its weights', so
    that AdamW's gradients grow when γ falls. This decay keeps the ratio, at √(2 · weight_decay / γ_max).

    It is meant for such layers. The paper takes all linear layers but the last for such; give the last one a decay of
    its own by `groups`, as below. For other optimizers, pass this decay as `weight_decay`: for Muon-C it is
    `muon(rate, weight_decay=proportional_schedule(0.1, rate, 0.02))`.

    Args:
        learning_rate: γ: a number ≥ 0, a schedule, or a function of the count.
        peak_learning_rate: γ_max, the largest rate of the schedule, > 0.
        b1, b2, eps: as in `scale_by_adam`.
        weight_decay: ≥ 0; that of AdamW at the largest rate.
        mask: which leaves decay, as in `add_decayed_weights`.

    Defazio 2025, arXiv:2506.02285.

    >>> from functional_opt import cosine_decay_schedule, groups
    >>> tx = adamc(cosine_decay_schedule(0.01, 100), 0.01, weight_decay=0.1)
    >>> tx.transforms[1]
    add_decayed_weights(weight_decay=proportional_schedule(0.1, cosine_decay_schedule(0.01, 100), 0.01))
    >>> tx = groups(tx, {"head/*": {"weight_decay": 0.1}})  # AdamW's decay for the head
    """
    decay = proportional_schedule(weight_decay, learning_rate, peak_learning_rate)
    return adamw(learning_rate, b1, b2, eps, weight_decay=decay, mask=mask, state_dtype=state_dtype)
