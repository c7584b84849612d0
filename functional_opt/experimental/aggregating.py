"""Optax's `experimental.aggregating` by its names: gradients of single examples, and what becomes of them."""

from .elements import AccumulateAvgUpdatesState as AccumulateAvgUpdatesState
from .elements import Aggregator as Aggregator
from .elements import PerElementMeanAndSumSqDiffGradsState as PerElementMeanAndSumSqDiffGradsState
from .elements import accumulate_avg_updates as accumulate_avg_updates
from .elements import average_incrementally_updates as average_incrementally_updates
from .elements import average_per_element_updates as average_per_element_updates
from .elements import get_batch_size_from_per_elt_updates as get_batch_size_from_per_elt_updates
from .elements import get_per_element_mean_and_sum_sq_diff_grads as get_per_element_mean_and_sum_sq_diff_grads
from .elements import process as process
from .elements import process_elements as process_elements
from .variance import PerElementMeanAndVarianceEMAState as PerElementMeanAndVarianceEMAState
from .variance import add_mean_variance_to_opt as add_mean_variance_to_opt
from .variance import get_unbiased_mean_and_variance_ema as get_unbiased_mean_and_variance_ema
from .variance import track_per_element_mean_and_variance_with_ema as track_per_element_mean_and_variance_with_ema
