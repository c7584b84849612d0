"""The rules of Keras's optimizers as transformations and states of their own, without what the facade adds."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.paths import PathRules
from ..core.schedule import Schedule
from ..core.transformation import EmptyState, GradientTransformation, increment
from ..keras.engine.step import ScheduledValue
from ..keras.optimizers import Optimizer
from ..keras.optimizers.muon import Muon
from ..keras.optimizers.schedule_free_adamw import ScheduleFreeAdamW
from ..optimizers.schedule_free import schedule_free
from ..schedules import constant_schedule, join_schedules, linear_schedule
from ..transforms.combining.chain import chain
from ..transforms.combining.select import MaskedState, PartitionState, partition
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import ScaleByScheduleState, scale_by_learning_rate
from ..transforms.wrapping.evaluate import ParamsEmaState, params_ema

READ_PARAMS = ("Adafactor", "Lamb", "ScheduleFreeAdamW")
"""The classes whose rule reads the params, which Keras has decayed before."""


class Leaves(NamedTuple):
    """The leaves of the params. `matrices`: the paths of those that Muon moves; `undecayed`: without weight decay."""

    matrices: Sequence[str] = ()
    undecayed: Sequence[str] = ()

    def decay(self, rate: Any) -> GradientTransformation:
        """Returns the link that decays the weights."""
        rules = {f"/{path}": False for path in self.undecayed}
        return add_decayed_weights(float(rate), PathRules(rules) if rules else None)


def transformation_of(facade: Optimizer, leaves: Leaves, steps: int) -> GradientTransformation:
    """Returns the rule with its numbers: after the clips, with the weight decay before the rate, before the means.

    Raises ValueError, with the reason, for a weight decay or a warm-up that no chain gives.
    """
    inputs = facade._numbers()
    rule: Any = jax.tree.map(_plain, inputs.rule, is_leaf=lambda x: isinstance(x, ScheduledValue))
    if isinstance(facade, Muon):
        rule = _muon(rule, facade.weight_decay, facade.adam_weight_decay, leaves)
    elif inputs.weight_decay is not None:
        rule = _decayed(rule, inputs.weight_decay, type(facade).__name__, leaves)
    if isinstance(facade, ScheduleFreeAdamW):
        rule = _warmed_up(rule.rule, facade.warmup_steps)
    means = [_means(float(facade.ema_momentum), steps)] if facade.use_ema else []
    clips = getattr(inputs.clips, "transforms", ())
    return chain(*clips, rule, *means) if clips or means else rule


def _plain(x: Any) -> Any:
    """Returns a schedule without its wrapper, and a number as the shortest one that rounds to its float32."""
    if isinstance(x, ScheduledValue):
        return jax.tree.map(lambda n: _plain(n) if isinstance(n, np.floating) else n, x.schedule)
    return float(np.format_float_scientific(np.float32(x)))


def _decayed(rule: Any, weight_decay: Any, name: str, leaves: Leaves) -> chain:
    *links, last = getattr(rule, "transforms", (None,))
    if name in READ_PARAMS:
        raise ValueError(
            f"from_keras: Keras's {name} reads the params after their weight_decay, and a link here reads them "
            "before; set weight_decay to None and add add_decayed_weights where you want it"
        )
    if not isinstance(last, scale_by_learning_rate):
        raise ValueError(
            f"from_keras: the weight_decay of {name} does not stand before the rate here; set it to None and add "
            "add_decayed_weights where you want it"
        )
    return chain(*links, leaves.decay(weight_decay), last)


def _muon(rule: Any, weight_decay: Any, adam_weight_decay: Any, leaves: Leaves) -> partition:
    """Returns both rules with their weight decay, which Keras multiplies by the rate alone."""
    *matrices, rate = rule.transforms["muon"].transforms
    adam, _, ratio = rule.transforms["adam"].transforms
    others = [adam] if ratio.step_size == 1 else [adam, ratio]

    def with_decay(links: Sequence[GradientTransformation], decay: Any) -> chain:
        return chain(*links, *([] if decay is None else [leaves.decay(decay)]), rate)

    both: dict[Any, GradientTransformation] = {
        "adam": with_decay(others, adam_weight_decay),
        "muon": with_decay(matrices, weight_decay),
    }
    return partition(both, PathRules({f"/{path}": "muon" for path in leaves.matrices} | {"**": "adam"}))


def _warmed_up(rule: Any, steps: int) -> schedule_free:
    """Returns the rule with its warm-up from rate / steps as a public schedule."""
    rms, last = rule.base_optimizer.transforms
    rate = getattr(last.learning_rate, "rate", last.learning_rate) if steps else last.learning_rate
    if steps and isinstance(rate, Schedule):
        raise ValueError(
            f"from_keras: warmup_steps={steps} multiplies a schedule; give ScheduleFreeAdamW a number as rate"
        )
    rate = linear_schedule(rate / steps, rate, steps - 1) if steps > 1 else rate
    return dataclasses.replace(rule, base_optimizer=chain(rms, scale_by_learning_rate(rate)), learning_rate=rate)


def _means(momentum: float, steps: int) -> params_ema:
    """Returns the means of Keras, which start at the params after the first step."""
    momentum = _plain(momentum)
    if not steps:
        return params_ema(join_schedules([constant_schedule(0.0), constant_schedule(momentum)], [1]), debias=False)
    return params_ema(momentum, debias=False)


def state_of(tx: Any, states: Iterator[Any], average: Any, count: jax.Array) -> Any:
    """Returns the state of a transformation of `transformation_of`.

    Args:
        tx: the transformation.
        states: those of the facade's links in order, as trees of the params.
        average: the means of the params.
        count: the number of steps.
    """
    if type(tx) is chain:
        return tuple(state_of(link, states, average, count) for link in tx.transforms)
    if isinstance(tx, add_decayed_weights):
        return EmptyState()
    if isinstance(tx, params_ema):
        return ParamsEmaState(count, average, jax.tree.map(lambda _: jnp.zeros([], float), average))
    state = next(states)
    if isinstance(tx, partition):
        parts = {label: iter(state.inner_states[label].inner_state) for label in tx.transforms}
        return PartitionState(
            {label: MaskedState(state_of(tx.transforms[label], x, average, count)) for label, x in parts.items()}
        )
    if isinstance(tx, schedule_free):
        base = state_of(tx.base_optimizer, iter(state.base_optimizer_state), average, count)
        done = count.astype(state.weight_sum.dtype)
        return state._replace(base_optimizer_state=base, step_count=increment(count), weight_sum=done)
    if isinstance(tx, scale_by_learning_rate) and isinstance(tx.learning_rate, Schedule):
        return ScaleByScheduleState(count)  # in Keras the rate is computed outside of the rule
    return state
