"""scale_by_mup: learning rates tuned on a narrow model that fit models of any width."""

import math
from typing import Annotated, Any, Literal

import jax
import numpy as np

from ...core.checks import Static
from ...core.leaves import Tree, is_nothing, map_leaves, paths
from ...core.paths import AllParams, Frozen, PathRules, resolve_values
from ...core.ranges import Convert
from ...core.schedule import Schedule
from ...core.transformation import EmptyState, GradientTransformation, transformation

_USUAL = "the last but one"


def _are_whole(x: Any) -> bool:
    return type(x) is tuple and all(type(n) is int for n in x)


def _is_shape(x: Any) -> bool:
    return _are_whole(x) and all(n >= 0 for n in x)


def _shape(name: str, x: Any) -> tuple[int, ...] | None:
    if x is None or _is_shape(x):
        return x
    if hasattr(x, "shape"):
        return tuple(x.shape)
    if np.ndim(x) == 0 and isinstance(x, float | int):
        return ()
    raise TypeError(f"{name} must be an array or a shape such as (64, 64), got {x!r}")


def _axes(name: str, x: Any) -> tuple[int, ...]:
    if _are_whole(x):
        return x
    raise TypeError(f"{name} must be a tuple of axes such as (0,), got {x!r}")


def _shapes(name: str, x: Any) -> Any:
    """Converts a tree of arrays or shapes to one of shapes, and path rules to rules with shapes."""
    if isinstance(x, dict) and any("*" in k for k in x if isinstance(k, str)):
        x = PathRules(x)
    if isinstance(x, PathRules):
        return PathRules({pattern: _shape(f"{name}[{pattern!r}]", v) for pattern, v in x.rules})
    if isinstance(x, Frozen):
        return x
    refused = GradientTransformation | Schedule  # pytrees, but not of arrays
    leaves, treedef = jax.tree.flatten(x, is_leaf=lambda n: _is_shape(n) or isinstance(n, refused))
    others = [isinstance(n, str) or callable(n) and not isinstance(n, refused) for n in leaves]  # a model's functions
    shapes = (None if other else _shape(name, n) for n, other in zip(leaves, others, strict=True))
    return Frozen(tuple(shapes), treedef)


def _fan_in(name: str, x: Any) -> PathRules:
    if not isinstance(x, dict | PathRules):
        raise TypeError(
            f"{name} must be a dict from path patterns to axes such as {{'query/kernel': (0,)}}, got {x!r}"
        )
    rules = x.rules if isinstance(x, PathRules) else tuple(x.items())
    return PathRules({pattern: _axes(f"{name}[{pattern!r}]", v) for pattern, v in rules})


@transformation
class scale_by_mup(GradientTransformation):
    """Scales each leaf's update for its width, according to μP: u = g / rᵢₙ for Adam, g · rₒᵤₜ / rᵢₙ for SGD.

    rᵢₙ and rₒᵤₜ say how many times wider a leaf's inputs and outputs are than in a base model. The base model's
    learning rate then fits all widths. A weight's last axis holds its outputs and the one before holds its inputs; a
    vector has outputs only. If all widths are r times those of the base model, the factors are:

    ======  ===============  ======  ======
    \\       input, vectors   hidden  output
    ======  ===============  ======  ======
    adam    1                1/r     1/r
    sgd     r                1       1/r
    ======  ===============  ======  ======

    The model must do the other half of μP: initialize weights with variance 1/fan_in and output weights with variance
    1/fan_in² or with zeros, and scale attention by 1/d. Use "adam" for any rule whose updates have the same size for
    all gradients. In a chain, place this after that rule, and before `add_decayed_weights` if the decay should be the
    same at all widths.

    Args:
        base_params: the params of the base model, or anything with their shapes (`jax.eval_shape` of the function
            that makes them, or a tree of tuples); or path rules with shapes, such as
            `{"**/hidden/kernel": (64, 64), "**": None}`, where None means the leaf's own shape.
        optimizer: "adam" or "sgd".
        fan_in: path rules with the axes of the inputs, if these are not the default: `{"**/query/kernel": (0,)}`. The
            axes that are not inputs are outputs.

    Raises ValueError, naming the leaf, if shapes do not fit each other or it is unclear which axes are inputs.

    Yang, Hu et al. 2022, arXiv:2203.03466, table 3, which puts everything into learning rates and initialization.
    Table 8 is equivalent, with a multiplier of 1/fan_in on the output.

    >>> base = {"in": np.zeros((3, 8)), "hidden": np.zeros((8, 8)), "out": np.zeros((8, 2))}
    >>> wide = {"in": np.zeros((3, 32)), "hidden": np.zeros((32, 32)), "out": np.zeros((32, 2))}
    >>> scale_by_mup(base).multipliers(wide)
    {'hidden': 0.25, 'in': 1.0, 'out': 0.25}
    """

    base_params: Static[Annotated[Any, Convert(_shapes, "tree of arrays or shapes, or path rules")]]
    optimizer: Static[Literal["adam", "sgd"]] = "adam"
    fan_in: Static[Annotated[Any, Convert(_fan_in, "{pattern: axes}")] | None] = None

    def init(self, params):
        self.multipliers(params)  # shapes that do not fit are an error before training starts
        return EmptyState()

    def update(self, updates, state, params=None, **extra):
        factors = self.multipliers(updates)
        return map_leaves(lambda g, f: g * f, updates, read=(factors,), params=params, same_shape=False), state

    def multipliers(self, params: Tree) -> Tree:
        """Returns the factor for each leaf of params, or of anything with their shapes."""
        if isinstance(params, AllParams):
            return params
        leaves, treedef = jax.tree.flatten(params, is_leaf=is_nothing)
        base = treedef.flatten_up_to(resolve_values("base_params", self.base_params, params))
        rules = PathRules({}) if self.fan_in is None else self.fan_in
        fan_in = treedef.flatten_up_to(rules.resolve(params, default=_USUAL))
        rows = zip(paths(params, is_nothing), leaves, base, fan_in, strict=True)
        return treedef.unflatten([None if is_nothing(x) else self._multiplier(p, x, b, a) for p, x, b, a in rows])

    def _multiplier(self, path: str, x: Any, base: tuple[int, ...] | None, fan_in: Any) -> float:
        shape = np.shape(x)
        base = shape if base is None else base
        if len(base) != len(shape):
            raise ValueError(f"params{path} has shape {shape}, but base_params {base}: the axes must be as many")
        if fan_in == _USUAL:
            if shape[:-2] != base[:-2]:
                raise ValueError(
                    f"params{path} has shape {shape}, the base model {base}: more than the last two axes differ. "
                    "Say which are inputs: fan_in={pattern: axes}"
                )
            fan_in = (-2,) if len(shape) > 1 else ()
        if not all(-len(shape) <= axis < len(shape) for axis in fan_in):
            raise ValueError(f"fan_in={fan_in} for params{path}, which has shape {shape}: there is no such axis")
        if any(b == 0 != n for n, b in zip(shape, base, strict=True)):
            raise ValueError(
                f"params{path} has shape {shape}, the base model {base}: an axis of length 0 cannot be widened"
            )
        wider = [n / b if n != b else 1.0 for n, b in zip(shape, base, strict=True)]
        inputs = {axis % len(shape) for axis in fan_in}
        r_in = math.prod(w for i, w in enumerate(wider) if i in inputs)
        r_out = math.prod(w for i, w in enumerate(wider) if i not in inputs)
        return 1.0 / r_in if self.optimizer == "adam" else r_out / r_in

    def touched_leaves(self, params):
        """Returns a mask of the leaves that it changes, for `explain`."""
        return jax.tree.map(lambda f: f != 1, self.multipliers(params))
