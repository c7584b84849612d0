"""from_keras: an optimizer of Keras as a transformation with its state, for a loop of your own."""

import os
from typing import Any

import jax
import numpy as np

from ..core.leaves import Tree
from ..core.model_trees import names
from ..core.transformation import EmptyState, GradientTransformation
from ..keras.engine.by_variable import ByVariable, shift_counts
from ..keras.optimizers import CLASSES, Optimizer
from ..keras.optimizers.muon import Muon
from ..keras.variables.variable import Variable
from .keras_rules import Leaves, state_of, transformation_of

COMPARED = (
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Ftrl", "Lamb", "Lion", "Muon", "Nadam"),
    *("RMSprop", "SGD", "ScheduleFreeAdamW"),
)
"""The classes whose steps here have been compared with Keras's: all that Keras 3 has but the wrappers."""


def from_keras(optimizer: Any, params: Tree) -> tuple[GradientTransformation, Any]:
    """Returns the transformation and the state with which training goes on where an optimizer of Keras 3 stands.

    Args:
        optimizer: a built optimizer of a class of Keras 3, on any backend; or the path of a `.keras` file, which
            Keras loads with `keras.saving.load_model`.
        params: the values to go on with, in any containers. Their paths, such as `dense/kernel`, must be those of the
            optimizer's variables, with or without the first parts, such as the name of the model; or they are a list
            in the order of the variables.

    `learning_rate` stays a schedule if it is one; clips come along. With `use_ema`, `eval_params(state, params)` has
    the means; at the end of `fit`, Keras puts these into the model's variables, too. The next steps are Keras's, up
    to rounding.

    Raises ValueError, with the reason, for an optimizer that is not built, for one with accumulation, a loss scale,
    means that overwrite the params, variables with constraints, or a weight decay that no link here gives, for params
    that are not its variables, and for a file of another kind or without an optimizer; TypeError for another class.

        model = keras.saving.load_model("model.keras")
        params = {v.path: v.value for v in model.trainable_variables}
        tx, state = from_keras(model.optimizer, params)

    A `.weights.h5` file has weights without the settings of the optimizer. Build one for it before Keras loads it:

        model.compile(keras.optimizers.Adam(1e-3))
        model.optimizer.build(model.trainable_variables)
        model.load_weights("model.weights.h5")
    """
    if isinstance(optimizer, str | os.PathLike):
        optimizer = _loaded(os.fspath(optimizer))
    config = dict(optimizer.get_config())
    facade = _facade(type(optimizer).__name__, config)
    if not getattr(optimizer, "built", False):
        raise ValueError("the optimizer is not built: it has no state yet. Take a step, or call optimizer.build")
    theirs = optimizer._trainable_variables
    _refuse(config, theirs)
    order = _order([v.path for v in theirs], params)
    leaves, treedef = jax.tree.flatten(params)
    variables = [Variable(leaves[i], name=v.path) for i, v in zip(order, theirs, strict=True)]
    facade.build(variables)
    facade.set_weights([np.asarray(v) for v in optimizer.variables])
    keys = {facade._single_engine().store.keys[id(v)]: i for v, i in zip(variables, order, strict=True)}
    paths, routes = names(params), facade.routing() if isinstance(facade, Muon) else {}
    groups = Leaves(
        matrices=[paths[keys[key]] for key, label in routes.items() if label == "muon"],
        undecayed=[paths[i] for i, v in zip(order, theirs, strict=True) if not optimizer._use_weight_decay(v)],
    )

    def as_params(x: Any) -> Any:
        if not isinstance(x, ByVariable):
            return x
        if not x:  # no means
            return None
        return treedef.unflatten(x[key] for key in sorted(x, key=keys.__getitem__))

    state, count = facade._engine.state(), facade.iterations.value
    inner = shift_counts(state.inner, count - state.counted)
    inner, average = jax.tree.map(as_params, (inner, state.average), is_leaf=lambda x: isinstance(x, ByVariable))
    tx = transformation_of(facade, groups, int(count))
    clips = [EmptyState() for _ in getattr(facade._numbers().clips, "transforms", ())]
    states = iter([*clips, *(inner if type(inner) is tuple else (inner,))])
    return tx, state_of(tx, states, average, count)


def _loaded(path: str) -> Any:
    """Returns the optimizer in a `.keras` file."""
    if not path.endswith(".keras"):
        raise ValueError(
            f"from_keras reads `.keras` files, got {path!r}; let Keras load weights into a model whose optimizer is "
            "built, and pass model.optimizer"
        )
    import keras

    model: Any = keras.saving.load_model(path)
    if getattr(model, "optimizer", None) is None:
        raise ValueError(f"from_keras: the model in {path!r} has no optimizer; it was saved without compile")
    return model.optimizer


def _facade(name: str, config: dict[str, Any]) -> Optimizer:
    if name not in COMPARED:
        raise TypeError(
            f"from_keras takes {', '.join(COMPARED)}, got {name}, which has not been compared with Keras's"
        )
    return CLASSES[name].from_config(config | {"dialect": "keras3"})


def _refuse(config: dict[str, Any], variables: list[Any]) -> None:
    """Raises ValueError for what Keras does around the rule and no transformation here does."""
    for name, what in (
        ("gradient_accumulation_steps", "accumulation; wrap the transformation in MultiSteps"),
        ("loss_scale_factor", "a loss scale; divide the gradients by it"),
    ):
        if config.get(name):
            raise ValueError(f"from_keras: {name}={config[name]!r} is {what}")
    if config.get("use_ema"):
        if every := config.get("ema_overwrite_frequency"):
            raise ValueError(
                f"from_keras: with ema_overwrite_frequency={every} Keras replaces the params by their means at every "
                f"{every}th step, which params_ema does not do; set it to None"
            )
        if config["ema_momentum"] == 1:
            raise ValueError("from_keras: ema_momentum=1 keeps the first means for good; set use_ema to False")
    for v in variables:
        if getattr(v, "constraint", None) is not None:
            raise ValueError(f"from_keras: {v.path!r} has a constraint; apply it to the params after each step")
        if getattr(v, "overwrite_with_gradient", False):
            raise ValueError(f"from_keras: {v.path!r} is overwritten by its gradient; leave it out of the optimizer")


def _order(paths: list[str], params: Tree) -> list[int]:
    """Returns, for each variable, which leaf of the params is its value."""
    found = names(params)
    if len(found) != len(paths):
        raise ValueError(f"params has {len(found)} leaves, but the optimizer has {len(paths)} variables: {paths}")
    if isinstance(params, list | tuple) and all(not jax.tree.structure(x).node_data() for x in params):
        return list(range(len(paths)))
    order = []
    for path in paths:
        fits = [i for i, name in enumerate(found) if f"/{path}".endswith(f"/{name}") or name.endswith(f"/{path}")]
        if len(fits) != 1:
            many = f"{len(fits)} leaves for" if fits else "no leaf for"
            raise ValueError(f"params has {many} the variable {path!r}; its paths are {found}")
        order += fits
    if len(set(order)) < len(order):
        raise ValueError(f"params has fewer leaves than variables by path: {found} for {paths}")
    return order
