"""with_metrics, metrics: what a step did, as scalars in the state."""

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
    """`metrics`: scalars of the last step by name. `inner_state`: that of the transformation, clips with a norm."""

    metrics: Number
    inner_state: States


class ClippedState(NamedTuple):
    """`norm`: of what the clip gave. `inner_state`: the clip's own."""

    norm: Number
    inner_state: States


@transformation
class with_metrics(GradientTransformation):
    """The same updates, and a few scalars of each step in the state, which `metrics` reads.

    Args:
        inner: any transformation, of any nesting.

    The metrics, float32 but for the two counts:

    - `step`: updates asked for so far, an int32;
    - `skipped`: those that an `apply_if_finite`, a `skip_spikes`, a `dynamic_loss_scale` or the
      `should_skip_update_fn` of a `MultiSteps` left out, an int32;
    - `learning_rate`: as it was at this step, whatever schedule it follows;
    - `gradient_norm`, `clipped_norm`, `update_norm`: global norms of what came in, after a clip, of what went out;
    - `update_ratio`: `update_norm` over the global norm of the params; NaN where update got no params;
    - `loss_scale`, `noise_scale`: those of a `dynamic_loss_scale` and a `gradient_noise_scale`.

    Where there are several learning rates or clips each has its own name, `learning_rate/LABEL` with the label of
    its group or link, or its number; where there is none there is no such metric. What stands inside of `MultiSteps`
    is as it was at the end of the last window. Nothing is read back to the host, and the names are fixed at init, so
    it runs in `jax.jit` and `jax.lax.scan`.

    >>> from functional_opt import adam, chain, clip_by_global_norm, cosine_decay_schedule
    >>> tx = with_metrics(chain(clip_by_global_norm(1.0), adam(cosine_decay_schedule(0.1, 100))))
    >>> params = {"w": jnp.array([3.0, 4.0])}
    >>> updates, state = tx.update({"w": jnp.array([0.0, 2.0])}, tx.init(params), params)
    >>> {name: round(x.item(), 3) for name, x in metrics(state).items()}  # doctest: +NORMALIZE_WHITESPACE
    {'clipped_norm': 1.0, 'gradient_norm': 2.0, 'learning_rate': 0.1, 'skipped': 0, 'step': 1, 'update_norm': 0.1,
     'update_ratio': 0.02}

    Differs from Optax, whose monitor changes the structure of its state, and which has no other way to a rate.
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
    """The metrics of the last step, by name, from any state in which there is one `with_metrics`.

    Raises ValueError where there is none, or where there are several.
    """
    return dict(find_one(state, MetricsState, "metrics", "wrap the transformation in with_metrics").metrics)


@transformation
class _normed(GradientTransformation):
    """A clip that keeps the norm of what it gave."""

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
    """The learning rates that the links of a transformation use next."""
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
    """What the links of a transformation say of their states, under the names that they give it."""
    found: dict[str, list] = {}
    for _, labels, link, own in walk(tx, state):
        for name, x in link.reported(own).items() if own is not None else ():
            found.setdefault(name, []).append((labels, x))
    return {key: x for name, xs in found.items() for key, x in _named(name, xs).items()}


def _named(name: str, found: list[tuple[tuple, Any]]) -> dict[str, Any]:
    if len(found) == 1:
        return {name: found[0][1]}
    apart = len({labels for labels, _ in found}) == len(found)
    return {f"{name}/{'/'.join(map(str, labels)) if apart else i}": x for i, (labels, x) in enumerate(found)}


def _skipped(tx: Any, before: Any, after: Any) -> jax.Array:
    """Whether something left this step out."""
    skipped = jnp.array(False)
    for (_, _, link, old), (_, _, _, new) in zip(walk(tx, before), walk(tx, after), strict=True):
        if hasattr(old, "total_skipped"):
            skipped |= new.total_skipped != old.total_skipped
        if isinstance(old, ApplyIfFiniteState):  # inside of MultiSteps it is not asked at every step
            asked = new.total_notfinite != old.total_notfinite
            skipped |= asked & (new.notfinite_count <= link.max_consecutive_errors)
        if isinstance(old, MultiStepsState):
            skipped |= (new.mini_step == old.mini_step) & (new.gradient_step == old.gradient_step)
    return skipped


def _sorted(x: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(x.items()))
