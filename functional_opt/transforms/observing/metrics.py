"""with_metrics, metrics: scalars about the last step, kept in the state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.model_trees import visible
from ...core.norms import global_norm
from ...core.queries import find_one
from ...core.schedule import Schedule, rate_at
from ...core.slots import Number, States
from ...core.transformation import GradientTransformation, Transformation, increment, transformation, zero_count
from ..combining.nesting import children, walk, with_children
from ..wrapping.accumulate import MultiStepsState
from ..wrapping.guard import ApplyIfFiniteState


class MetricsState(NamedTuple):
    """`metrics`: scalars of the last step by name. `inner_state`: the inner state, clips with a `ClippedState`."""

    metrics: Number
    inner_state: States


class ClippedState(NamedTuple):
    """`norm`: the global norm after the clip. `inner_state`: the clip's state."""

    norm: Number
    inner_state: States


@transformation
class with_metrics(GradientTransformation):
    """Records a few scalars about each step in the state, for `metrics` to read; the updates do not change.

    Args:
        inner: any transformation, however nested.

    The metrics are float32, except for the two counts:

    - `step`: calls of `update` so far, an int32;
    - `skipped`: the steps among them that an `apply_if_finite`, a `skip_spikes`, a `dynamic_loss_scale` or the
      `should_skip_update_fn` of a `MultiSteps` skipped, an int32;
    - `learning_rate`: the rate of this step, with or without a schedule;
    - `gradient_norm`, `clipped_norm`, `update_norm`: global norms of the incoming gradients, of the output of a clip,
      and of the resulting updates;
    - `update_ratio`: `update_norm` divided by the global norm of the params; NaN if `update` got no params;
    - `loss_scale`, `noise_scale`: those of a `dynamic_loss_scale` and a `gradient_noise_scale`.

    If there are several learning rates or clips, each gets its own name: `learning_rate/LABEL`, where LABEL is the
    label of its group or link, or else a number. If there is none, the metric is absent. Metrics from inside
    `MultiSteps` are those at the end of the last window. Nothing is read back to the host, and the names are fixed at
    init, so it works in `jax.jit` and `jax.lax.scan`.

    >>> from functional_opt import adam, chain, clip_by_global_norm, cosine_decay_schedule
    >>> tx = with_metrics(chain(clip_by_global_norm(1.0), adam(cosine_decay_schedule(0.1, 100))))
    >>> params = {"w": jnp.array([3.0, 4.0])}
    >>> updates, state = tx.update({"w": jnp.array([0.0, 2.0])}, tx.init(params), params)
    >>> {name: round(x.item(), 3) for name, x in metrics(state).items()}  # doctest: +NORMALIZE_WHITESPACE
    {'clipped_norm': 1.0, 'gradient_norm': 2.0, 'learning_rate': 0.1, 'skipped': 0, 'step': 1, 'update_norm': 0.1,
     'update_ratio': 0.02}

    Optax (0.2.8) has no such function: its `monitor` applies given functions to the updates, so that it sees no
    learning rate or params, and its state changes its structure at the first update.
    """

    inner: Transformation

    def init(self, params):
        tx = _with_norms(self.inner)
        inner_state = tx.init(params)
        found = {**_rates(tx, inner_state), **_measures(tx, inner_state)}
        numbers = {"gradient_norm", "update_norm", "update_ratio", *found}
        counts = {"step": zero_count(), "skipped": zero_count()}
        return MetricsState(_sorted(counts | {name: jnp.zeros([]) for name in numbers}), inner_state)

    def update(self, updates, state, params=None, **extra):
        tx, before = _with_norms(self.inner), state.inner_state
        new, after = tx.update(updates, before, params, **extra)
        size = global_norm(new)
        of_params = jnp.array(jnp.nan) if params is None else global_norm(visible(params, updates))
        numbers = {
            "gradient_norm": global_norm(updates),
            "update_norm": size,
            "update_ratio": jnp.where(of_params == 0, 0.0, size / jnp.where(of_params == 0, 1.0, of_params)),
            **_rates(tx, before),
            **_measures(tx, after),
        }
        step, skipped = (state.metrics[name] for name in ("step", "skipped"))
        counts = {
            "step": increment(step),
            "skipped": jnp.where(_skipped(tx, before, after), increment(skipped), skipped),
        }
        numbers = {name: jnp.asarray(x, state.metrics[name].dtype) for name, x in numbers.items()}
        return new, MetricsState(_sorted(counts | numbers), after)


def metrics(state: Any) -> dict[str, jax.Array]:
    """Returns the metrics of the last step by name, from any state that contains one `with_metrics`.

    Raises ValueError if there is none, or if there are several.
    """
    return dict(find_one(state, MetricsState, "metrics", "wrap the transformation in with_metrics").metrics)


@transformation
class _normed(GradientTransformation):
    """Records the norm of a clip's result."""

    inner: Transformation

    def init(self, params):
        return ClippedState(jnp.zeros([]), self.inner.init(params))

    def update(self, updates, state, params=None, **extra):
        updates, inner_state = self.inner.update(updates, state.inner_state, params, **extra)
        return updates, ClippedState(jnp.asarray(global_norm(updates), state.norm.dtype), inner_state)

    def reported(self, state):
        return {"clipped_norm": state.norm}


def _with_norms(tx: GradientTransformation) -> GradientTransformation:
    return _normed(tx) if tx.clips else with_children(tx, _with_norms)


def _rates(tx: Any, state: Any) -> dict[str, Any]:
    """Returns the learning rates that the links of a transformation use next."""
    found = []
    for _, labels, link, own in walk(tx, state):
        within = any(hasattr(inner, "learning_rate") for _, _, inner, _ in list(walk(link))[1:])
        if not hasattr(link, "learning_rate") or (within and children(link)):
            continue
        rate = 1.0 if link.learning_rate is None else link.learning_rate
        count = getattr(own, "count", None)
        if not isinstance(rate, Schedule) or hasattr(count, "dtype"):
            found.append((labels, rate_at(rate, count)))
    return _named("learning_rate", found)


def _measures(tx: Any, state: Any) -> dict[str, Any]:
    """Returns the values that the links of a transformation report from their states, by name."""
    found: dict[str, list] = {}
    for _, labels, link, own in walk(tx, state):
        for name, x in link.reported(own).items() if own is not None else ():
            found.setdefault(name, []).append((labels, x))
    return {key: x for name, xs in found.items() for key, x in _named(name, xs).items()}


def _named(name: str, found: list[tuple[tuple, Any]]) -> dict[str, Any]:
    if len(found) == 1:
        return {name: found[0][1]}
    distinct = len({labels for labels, _ in found}) == len(found)
    return {f"{name}/{'/'.join(map(str, labels)) if distinct else i}": x for i, (labels, x) in enumerate(found)}


def _skipped(tx: Any, before: Any, after: Any) -> jax.Array:
    """Returns whether any link skipped this step."""
    skipped = jnp.array(False)
    for (_, _, link, old), (_, _, _, new) in zip(walk(tx, before), walk(tx, after), strict=True):
        if hasattr(old, "total_skipped"):
            skipped |= new.total_skipped != old.total_skipped
        if isinstance(old, ApplyIfFiniteState):  # inside MultiSteps it does not run at every step
            asked = new.total_notfinite != old.total_notfinite
            skipped |= asked & (new.notfinite_count <= link.max_consecutive_errors)
        if isinstance(old, MultiStepsState):
            skipped |= (new.mini_step == old.mini_step) & (new.gradient_step == old.gradient_step)
    return skipped


def _sorted(x: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(x.items()))
