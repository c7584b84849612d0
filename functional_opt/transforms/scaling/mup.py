"""scale_by_mup: learning rates tuned on a narrow model that fit models of any width."""

import math
from typing import Annotated, Any, Literal

import jax
import numpy as np

from ...core.checks import Static
from ...core.leaves import Tree, is_nothing, map_leaves, paths
from ...core.paths import AllParams, MaskedNode, PathRules
from ...core.ranges import Convert
from ...core.transformation import EmptyState, GradientTransformation, transformation
from ..matrices.routing import Layout, LeafRole, leaf_roles
from ..matrices.widths import BaseParams, are_whole, base_shapes, times_wider

_USUAL = "the last but one"


def _axes(name: str, x: Any) -> tuple[int, ...]:
    if are_whole(x):
        return x
    raise TypeError(f"{name} must be a tuple of axes such as (0,), got {x!r}")


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
    same at all widths. Orthogonal updates need other factors: see `base_params` of `muon` and `scale_by_shape`.

    Args:
        base_params: the params of the base model, or anything with their shapes (`jax.eval_shape` of the function
            that makes them, or a tree of tuples); or path rules with shapes, such as
            `{"**/hidden/kernel": (64, 64), "**": None}`, where None means the leaf's own shape.
        optimizer: "adam" or "sgd".
        fan_in: path rules with the axes of the inputs, if these are not the default: `{"**/query/kernel": (0,)}`. The
            axes that are not inputs are outputs.
        matrix_layout: "in_out" or "out_in", how matrices are stored, to read the inputs from paths and shapes as
            `muon_labels` does; None for the last axis but one.

    Raises ValueError, naming the leaf, if shapes do not fit each other or it is unclear which axes are inputs.

    Yang, Hu et al. 2022, arXiv:2203.03466, table 3, which puts everything into learning rates and initialization.
    Table 8 is equivalent, with a multiplier of 1/fan_in on the output.

    >>> base = {"in": np.zeros((3, 8)), "hidden": np.zeros((8, 8)), "out": np.zeros((8, 2))}
    >>> wide = {"in": np.zeros((3, 32)), "hidden": np.zeros((32, 32)), "out": np.zeros((32, 2))}
    >>> scale_by_mup(base).multipliers(wide)
    {'hidden': 0.25, 'in': 1.0, 'out': 0.25}
    """

    base_params: Static[BaseParams]
    optimizer: Static[Literal["adam", "sgd"]] = "adam"
    fan_in: Static[Annotated[Any, Convert(_fan_in, "{pattern: axes}")] | None] = None
    matrix_layout: Static[Layout | None] = None

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
        rules = PathRules({}) if self.fan_in is None else self.fan_in
        fan_in = [axes for axes in rules.of_each(params, default=_USUAL) if not isinstance(axes, MaskedNode)]
        if self.matrix_layout is not None:
            roles = leaf_roles(params, self.matrix_layout)
            fan_in = [_inputs(role) if axes == _USUAL else axes for role, axes in zip(roles, fan_in, strict=True)]
        rows = zip(paths(params, is_nothing), leaves, base_shapes(self.base_params, params), fan_in, strict=True)
        return treedef.unflatten([None if is_nothing(x) else self._multiplier(p, x, b, a) for p, x, b, a in rows])

    def _multiplier(self, path: str, x: Any, base: tuple[int, ...] | None, fan_in: Any) -> float:
        shape = np.shape(x)
        wider = times_wider(path, shape, base)
        if fan_in == _USUAL:
            if any(w != 1 for w in wider[:-2]):
                raise ValueError(
                    f"params{path} has shape {shape}, the base model {base}: more than the last two axes differ. "
                    "Say which are inputs: fan_in={pattern: axes}"
                )
            fan_in = (-2,) if len(shape) > 1 else ()
        if not all(-len(shape) <= axis < len(shape) for axis in fan_in):
            raise ValueError(f"fan_in={fan_in} for params{path}, which has shape {shape}: there is no such axis")
        inputs = {axis % len(shape) for axis in fan_in}
        r_in = math.prod(w for i, w in enumerate(wider) if i in inputs)
        r_out = math.prod(w for i, w in enumerate(wider) if i not in inputs)
        return 1.0 / r_in if self.optimizer == "adam" else r_out / r_in

    def touched_leaves(self, params):
        """Returns a mask of the leaves that it changes, for `explain`."""
        return jax.tree.map(lambda f: f != 1, self.multipliers(params))


def _inputs(role: LeafRole) -> Any:
    return () if role.kind == "vector" else role.rows or _USUAL
