"""process: transforms the gradients of single examples, aggregates them, and passes the result to an optimizer."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import (
    Tree,
    as_array,
    cast_tree_like,
    is_nothing,
    map_leaves,
    paths,
    widen_params,
    widen_tree,
    zeros_like,
)
from ..core.norms import abs_sq
from ..core.queries import NamedTupleKey, get
from ..core.ranges import PositiveInt
from ..core.slots import Counter, Exact, Number
from ..core.state_check import wrong_state
from ..core.transformation import (
    EmptyState,
    GradientTransformation,
    Transformation,
    _Pair,
    increment,
    transformation,
    zero_count,
)
from ..core.value import show
from ..transforms.combining.chain import identity
from ..transforms.scaling.stateless import stateless
from ..transforms.wrapping.guard import update_if

Axes = int | tuple[int, ...]
"""The axes of a gradient's leaves along which the examples lie."""


class Aggregator(GradientTransformation):
    """A transformation that takes the gradients of single examples, and whose updates have the shapes of the params.

    `isinstance(tx, Aggregator)` tells whether a step must pass it such gradients. `Aggregator(init, update)` makes
    one from two functions.

    >>> largest = Aggregator(lambda params: EmptyState(), lambda g, state, params=None: (jnp.max(g, 0), state))
    >>> largest.update(jnp.array([[1.0, 5.0], [3.0, 2.0]]), largest.init(jnp.zeros(2)))[0].tolist()
    [3.0, 5.0]
    """

    def __new__(cls, *args: Any, **kwargs: Any):
        return object.__new__(_AggregatorPair if cls is Aggregator else cls)


@transformation
class _AggregatorPair(_Pair, Aggregator):
    """An aggregator made of two functions."""

    init_fn: Static[Callable]
    update_fn: Static[Callable]
    __init__ = _Pair.__init__

    def __repr__(self):
        return f"Aggregator({show(self.init_fn)}, {show(self.update_fn)})"


@transformation
class process(GradientTransformation):
    """Aggregates gradients of single examples, or of several steps, for an optimizer: u = post(agg(pre(g))).

    If the state of the aggregator has a field `ready` that is False, updates are zero and `postprocessor` does not
    run. The result is an `Aggregator` if `aggregator` or `preprocessor` is one.

    Args:
        preprocessor: transforms the incoming gradients. Those of single examples do not have the shapes of params, so
            only your own functions (`stateless`, `GradientTransformation(init, update)`) get the params, too.
        aggregator: combines them into one update, over examples or over steps.
        postprocessor: an optimizer.
        aggregator_has_aux: whether the aggregator returns a pair of updates and a dict of extra arguments for the
            postprocessor.

    >>> from functional_opt import sgd
    >>> tx = process(identity(), average_per_element_updates(), sgd(1.0))
    >>> grads = jax.vmap(jax.grad(lambda w, x: w * x), (None, 0))(1.0, jnp.array([1.0, 3.0]))
    >>> float(tx.update(grads, tx.init(1.0), 1.0)[0])
    -2.0

    Differs from Optax: arithmetic is in float32 throughout, and the result is cast once, as in `chain`.
    """

    in_turn = True
    preprocessor: Transformation
    aggregator: Transformation
    postprocessor: Transformation
    aggregator_has_aux: Static[bool] = False

    def __new__(cls, preprocessor: Any = None, aggregator: Any = None, *args: Any, **kwargs: Any):
        of_elements = isinstance(preprocessor, Aggregator) or isinstance(aggregator, Aggregator)
        return object.__new__(process_elements if of_elements else cls)

    def init(self, params):
        return tuple(tx.init(params) for tx in (self.preprocessor, self.aggregator, self.postprocessor))

    def update(self, updates, state, params=None, **extra):
        if not (isinstance(state, tuple) and len(state) == 3):
            raise ValueError(wrong_state(type(self).__name__, "a tuple of 3 states", state))
        pre, agg, post = state
        like = updates if params is None else params
        updates, params = widen_tree(updates, "updates"), widen_params(params)
        alike = not isinstance(self, Aggregator) or isinstance(self.preprocessor, Aggregator | _Pair | stateless)
        updates, pre = self.preprocessor.update(updates, pre, params if alike else None, **extra)
        updates, agg = self.aggregator.update(updates, agg, params, **extra)
        if self.aggregator_has_aux:
            updates, more = updates
            extra = {**extra, **more}
        ready = get(agg, "ready", True, filtering=lambda path, _: isinstance(path[-1], NamedTupleKey))
        if ready is True:
            updates, post = self.postprocessor.update(updates, post, params, **extra)
        else:
            updates, post = update_if(ready, self.postprocessor, updates, post, params, extra)
        return cast_tree_like(updates, like), (pre, agg, post)


@transformation
class process_elements(process, Aggregator):
    """The class of a `process` that takes the gradients of single examples."""

    preprocessor: Transformation
    aggregator: Transformation
    postprocessor: Transformation
    aggregator_has_aux: Static[bool] = False


@transformation
class average_per_element_updates(Aggregator):
    """Averages over the examples: u = Σᵢ gᵢ / n, in float32 for 16-bit leaves.

    Args:
        per_elt_axis: the axis or axes of every leaf along which the examples lie.

    >>> tx = average_per_element_updates()
    >>> tx.update({"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}, EmptyState())[0]["w"].tolist()
    [2.0, 3.0]
    """

    per_elt_axis: Static[Axes] = 0

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        def leaf(g):
            return jnp.mean(g, self.per_elt_axis)

        return map_leaves(leaf, updates, params=params, same_shape=False), state


class AccumulateAvgUpdatesState(NamedTuple):
    """`micro_step`: the gradients so far. `ready`: whether the last one was among them. `avg_grad`: their mean."""

    micro_step: Counter
    ready: Number
    avg_grad: Exact


@transformation
class accumulate_avg_updates(GradientTransformation):
    """For `process`: returns the mean of the last k updates at every k-th step, and 0 at the others.

    a ← a + (g − a)/(n + 1) for the n-th of them, n = 0 … k−1; then u = a. With k = 1, u = g.

    Args:
        accumulation_steps: k ≥ 1.

    >>> from functional_opt import sgd
    >>> tx = process(identity(), accumulate_avg_updates(2), sgd(1.0))
    >>> u, state = tx.update(1.0, tx.init(0.0))
    >>> float(u), float(tx.update(3.0, state)[0])
    (0.0, -2.0)
    """

    accumulation_steps: Static[PositiveInt]

    def init(self, params):
        if self.accumulation_steps == 1:
            return EmptyState()
        return AccumulateAvgUpdatesState(zero_count(), jnp.array(False), zeros_like(params))

    def update(self, updates, state, params=None, **extra):
        if self.accumulation_steps == 1:
            return updates, state
        n = increment(state.micro_step)
        ready = n == self.accumulation_steps

        def leaf(g, a):
            a = a + (g - a) / n
            return jnp.where(ready, a, 0), jnp.where(ready, 0, a)

        updates, mean = map_leaves(leaf, updates, state.avg_grad, params=params)
        return updates, AccumulateAvgUpdatesState(jnp.where(ready, 0, n), ready, mean)


@checked
def average_incrementally_updates(
    per_elt_axis: Axes | None, accumulation_steps: PositiveInt
) -> GradientTransformation:
    """Averages over examples, then over steps: `average_per_element_updates` and `accumulate_avg_updates`.

    Args:
        per_elt_axis: as in `average_per_element_updates`; None if the gradients are already means.
        accumulation_steps: as in `accumulate_avg_updates`.

    >>> average_incrementally_updates(0, 2)
    process_elements(identity(), average_per_element_updates(), accumulate_avg_updates(2))
    """
    over_steps = accumulate_avg_updates(accumulation_steps)
    if per_elt_axis is None:
        return over_steps
    return process(identity(), average_per_element_updates(per_elt_axis), over_steps)


class PerElementMeanAndSumSqDiffGradsState(NamedTuple):
    """`micro_step`: the steps so far. `ready`: whether the last one is done. The other fields: the results so far."""

    micro_step: Counter
    ready: Number
    mean_grads: Exact
    sum_sq_diff_grads: Exact


@transformation
class get_per_element_mean_and_sum_sq_diff_grads(Aggregator):
    """For `process` with `aggregator_has_aux`: the mean of gᵢ over all examples and steps, and Σᵢ |gᵢ − mean|².

    The updates are a pair of the mean and {"sum_sq_diff_grads": the sums, "sample_size": the number of gᵢ}. With more
    than one step, the sums S' and mean m' of b new examples are merged with S and m of the a earlier ones by
    S + S' + |m' − m|²·a·b/(a + b).

    Args:
        per_elt_axis: the axis or axes of every leaf along which the examples lie.
        accumulation_steps: the number of steps, ≥ 1; at all but the last, the updates are 0.

    Raises ValueError if two leaves have different numbers of examples.

    Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance.

    >>> tx = get_per_element_mean_and_sum_sq_diff_grads()
    >>> (mean, more), _ = tx.update(jnp.array([1.0, 3.0]), tx.init(0.0))
    >>> float(mean), float(more["sum_sq_diff_grads"]), more["sample_size"]
    (2.0, 2.0, 2)
    """

    per_elt_axis: Static[Axes] = 0
    accumulation_steps: Static[PositiveInt] = 1

    def init(self, params):
        if self.accumulation_steps == 1:
            return EmptyState()
        blank = zeros_like(params), zeros_like(params, real=True)
        return PerElementMeanAndSumSqDiffGradsState(zero_count(), jnp.array(False), *blank)

    def update(self, updates, state, params=None, **extra):
        axes, size = self.per_elt_axis, get_batch_size_from_per_elt_updates(updates, self.per_elt_axis)

        def of_batch(g):
            mean = jnp.mean(g, axes, keepdims=True)
            return jnp.squeeze(mean, axes), jnp.sum(abs_sq(g - mean), axes)

        if self.accumulation_steps == 1:
            mean = map_leaves(lambda g: of_batch(g)[0], updates, params=params, same_shape=False)
            squares = jax.tree.map(lambda g: of_batch(g)[1], widen_tree(updates, "updates"))
            return (mean, {"sum_sq_diff_grads": squares, "sample_size": size}), state
        n = increment(state.micro_step)
        ready = n == self.accumulation_steps

        def leaf(g, m, s):
            mean, squares = of_batch(g)
            d = mean - m
            return m + d / n, m + d / n, s + squares + abs_sq(d) * (size * (n - 1) / n)

        slots = state.mean_grads, state.sum_sq_diff_grads
        now, mean, squares = map_leaves(leaf, updates, *slots, params=params, same_shape=False)
        more = {"sum_sq_diff_grads": squares, "sample_size": size * n}
        shown = jax.tree.map(lambda x: jnp.where(ready, x, 0), (now, more))
        kept = jax.tree.map(lambda x: jnp.where(ready, 0, x), (mean, squares))
        return shown, PerElementMeanAndSumSqDiffGradsState(jnp.where(ready, 0, n), ready, *kept)


def get_batch_size_from_per_elt_updates(per_elt_updates: Tree, per_elt_axis: Any = 0) -> int:
    """Returns the number of examples in a tree of their gradients.

    Raises ValueError, naming the leaf, if two leaves have different numbers of examples or one lacks an axis.

    >>> get_batch_size_from_per_elt_updates({"w": jnp.ones((3, 2)), "b": jnp.ones(3)})
    3
    """
    axes = (per_elt_axis,) if isinstance(per_elt_axis, int) else tuple(per_elt_axis)
    size, first = 0, ""
    leaves = jax.tree.leaves(per_elt_updates, is_leaf=is_nothing)
    for path, x in zip(paths(per_elt_updates, is_nothing), leaves, strict=True):
        if is_nothing(x):
            continue
        shape = as_array(x, lambda path=path: f"updates{path}").shape
        if any(not -len(shape) <= axis < len(shape) for axis in axes):
            raise ValueError(f"updates{path} has shape {shape}, which lacks the axis of the examples, {per_elt_axis}")
        own = math.prod(shape[axis] for axis in axes)
        if size not in (0, own):
            raise ValueError(f"updates{path} has gradients of {own} examples, but updates{first} has those of {size}")
        size, first = own, path
    return size
