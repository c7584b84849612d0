"""from_keras: an optimizer of Keras as a transformation with its state, for a loop of your own."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ..core.leaves import Tree
from ..core.model_trees import names
from ..core.schedule import Schedule
from ..core.transformation import EmptyState, GradientTransformation
from ..keras.engine.by_variable import ByVariable, shift_counts
from ..keras.engine.step import ScheduledValue
from ..keras.optimizers import CLASSES, Optimizer
from ..keras.variables.variable import Variable
from ..transforms.combining.chain import chain
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import ScaleByScheduleState, scale_by_learning_rate

COMPARED = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Ftrl", "Lamb", "Lion", "Nadam", "RMSprop", "SGD")
"""The classes whose steps here have been compared with Keras's."""


def from_keras(optimizer: Any, params: Tree) -> tuple[GradientTransformation, Any]:
    """Returns the transformation and the state with which training goes on where an optimizer of Keras 3 stands.

    Args:
        optimizer: a built optimizer of Keras 3, on any backend: Adadelta, Adagrad, Adam, AdamW, Adamax, Ftrl, Lamb,
            Lion, Nadam, RMSprop or SGD.
        params: the values to go on with, in any containers. Their paths, such as `dense/kernel`, must be those of the
            optimizer's variables, or end as these do; or they are a list in the order of the variables.

    Raises ValueError, with the reason, for an optimizer that is not built, for one with running means, accumulation,
    a loss scale, or a weight decay that does not stand before the rate, and for params that are not its variables;
    TypeError for another class. `learning_rate` stays a schedule if it is one; clips come along. The next steps are
    Keras's, up to rounding.

        params = {v.path: v.value for v in model.trainable_variables}
        tx, state = from_keras(model.optimizer, params)
    """
    config = dict(optimizer.get_config())
    facade = _facade(type(optimizer).__name__, config)
    if not getattr(optimizer, "built", False):
        raise ValueError("the optimizer is not built: it has no state yet. Take a step, or call optimizer.build")
    _refuse(config)
    order = _order([v.path for v in optimizer._trainable_variables], params)
    leaves, treedef = jax.tree.flatten(params)
    variables = [Variable(leaves[i], name=f"param_{i}") for i in order]
    facade.build(variables)
    facade.set_weights([np.asarray(v) for v in optimizer.variables])
    tx = _transformation(facade)
    keys = {facade._single_engine().store.keys[id(v)]: i for v, i in zip(variables, order, strict=True)}

    def as_params(x: Any) -> Any:
        if not isinstance(x, ByVariable):
            return x
        return treedef.unflatten(x[key] for key in sorted(x, key=keys.__getitem__))

    state, count = facade._engine.state(), facade.iterations.value
    inner = shift_counts(state.inner, count - state.counted)
    inner = jax.tree.map(as_params, inner, is_leaf=lambda x: isinstance(x, ByVariable))
    return tx, _filled(tx, iter(inner if type(inner) is tuple else (inner,)), count)


def _facade(name: str, config: dict[str, Any]) -> Optimizer:
    if name not in COMPARED:
        raise TypeError(
            f"from_keras takes {', '.join(COMPARED)}, got {name}, which has not been compared with Keras's"
        )
    return CLASSES[name].from_config(config | {"dialect": "keras3"})


def _refuse(config: dict[str, Any]) -> None:
    for name, what in (
        ("use_ema", "running means; add params_ema, and give it the means"),
        ("gradient_accumulation_steps", "accumulation; wrap the transformation in MultiSteps"),
        ("loss_scale_factor", "a loss scale; divide the gradients by it"),
    ):
        if config.get(name):
            raise ValueError(f"from_keras: {name}={config[name]!r} is {what}")


def _order(paths: list[str], params: Tree) -> list[int]:
    """Returns, for each variable, which leaf of the params is its value."""
    found = names(params)
    if len(found) != len(paths):
        raise ValueError(f"params has {len(found)} leaves, but the optimizer has {len(paths)} variables: {paths}")
    if isinstance(params, list | tuple) and all(not jax.tree.structure(x).node_data() for x in params):
        return list(range(len(paths)))
    order = []
    for path in paths:
        fits = [i for i, name in enumerate(found) if name == path or path.endswith(f"/{name}")]
        if len(fits) != 1:
            many = f"{len(fits)} leaves for" if fits else "no leaf for"
            raise ValueError(f"params has {many} the variable {path!r}; its paths are {found}")
        order += fits
    if len(set(order)) < len(order):
        raise ValueError(f"params has fewer leaves than variables by path: {found} for {paths}")
    return order


def _transformation(facade: Optimizer) -> GradientTransformation:
    """Returns the rule with its numbers, after the clips and with the weight decay before the rate."""
    inputs = facade._numbers()
    rule = jax.tree.map(_plain, inputs.rule, is_leaf=lambda x: isinstance(x, ScheduledValue))
    if inputs.weight_decay is not None:
        *links, last = getattr(rule, "transforms", (None,))
        if not isinstance(last, scale_by_learning_rate):
            raise ValueError(
                f"from_keras: the weight_decay of {type(facade).__name__} does not stand before the rate here; set "
                "it to None and add add_decayed_weights where you want it"
            )
        rule = chain(*links, add_decayed_weights(float(inputs.weight_decay)), last)
    clips = getattr(inputs.clips, "transforms", ())
    return chain(*clips, rule) if clips else rule


def _plain(x: Any) -> Any:
    """Returns a schedule without its wrapper, and a number as the shortest one that rounds to its float32."""
    if isinstance(x, ScheduledValue):
        return jax.tree.map(lambda n: _plain(n) if isinstance(n, np.floating) else n, x.schedule)
    return float(np.format_float_scientific(np.float32(x)))


def _filled(tx: Any, states: Iterator[Any], count: jax.Array) -> Any:
    """Returns the state of a chain: those of the rule's links in order, and of clips, decay and schedules between."""
    if type(tx) is chain:
        return tuple(_filled(link, states, count) for link in tx.transforms)
    if isinstance(tx, add_decayed_weights) or tx.clips:
        return EmptyState()
    state = next(states)
    if isinstance(tx, scale_by_learning_rate) and isinstance(tx.learning_rate, Schedule):
        return ScaleByScheduleState(count)  # in Keras the rate is computed outside of the rule
    return state
