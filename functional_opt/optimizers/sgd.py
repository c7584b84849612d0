"""Stochastic gradient descent, with momentum."""

from ..core.checks import checked
from ..core.ranges import DType, Fraction
from ..core.schedule import Rate
from ..transforms.combining.chain import chain, identity
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from ..transforms.scaling.moments import trace


@checked
def sgd(
    learning_rate: Rate,
    momentum: Fraction | None = None,
    nesterov: bool = False,
    accumulator_dtype: DType | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """Gradient descent: w ← w − learning_rate · t with t ← g + momentum·t; t = g without momentum.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count.
        momentum: in [0, 1]; None for no trace.
        nesterov: whether t looks one step ahead: g + momentum·t. It has no effect without momentum.
        accumulator_dtype, state_dtype: storage dtype of t. Both mean the same: Optax has the first, all our
            optimizers the second; the first wins. See `trace`.

    Robbins & Monro 1951; Polyak 1964; Sutskever et al. 2013, ICML.

    >>> tx = sgd(0.1, momentum=0.9)
    >>> tx
    chain(trace(0.9), scale_by_learning_rate(0.1))
    >>> u, state = tx.update({"w": 1.0}, tx.init({"w": 0.0}))
    >>> u, state = tx.update({"w": 1.0}, state)
    >>> round(u["w"].item(), 3)
    -0.19

    Differs from Keras, where the trace includes the learning rate.
    """
    first = identity() if momentum is None else trace(momentum, nesterov, accumulator_dtype or state_dtype)
    return chain(first, scale_by_learning_rate(learning_rate))
