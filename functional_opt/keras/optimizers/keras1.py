"""Lists of weights that Keras 1 saved."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .optimizer import Optimizer


class MayLackIteration(Optimizer):
    """Base of optimizers whose `set_weights` also accepts the lists of Keras 1, which began with the slots."""

    weights_start_with_iteration = False

    def _of_older_generations(self, weights: Sequence[Any]) -> Sequence[Any]:
        return [np.array(0), *weights] if len(weights) == len(self.weights) - 1 else weights
