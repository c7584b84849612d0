"""DoG and DoWG: gradient descent whose step size is the distance moved over the gradients seen."""

from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import cast_like, copy_of, map_leaves
from ..core.norms import abs_sq, global_norm, safe_sqrt
from ..core.paths import Mask
from ..core.ranges import Convert, DType, NonNegative
from ..core.schedule import Rate
from ..core.slots import Number, Params
from ..core.transformation import GradientTransformation, needs_params, transformation
from ..transforms.combining.chain import chain, identity
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from .distance import ratio, safe_divide_by_root, total_over_leaves


class DoGState(NamedTuple):
    """`is_init_step`: True before the first step. `init_params`: w₀. `max_dist`: r. `sum_sq_norm_grads`: G."""

    is_init_step: Number
    init_params: Params
    max_dist: Number
    sum_sq_norm_grads: Number


@transformation
class scale_by_dog(GradientTransformation):
    """DoG's step: u = r·g / √(G + eps), r the largest ‖w − w₀‖ so far and G the sum of all ‖g‖², over all leaves.

    Args:
        kind: how the first step is set. "distance": r is at least size. "heuristic": r is at least
            size · (1 + ‖w₀‖). "learning_rate": the first step is size · g.
        size: the number that `kind` uses, ≥ 0.
        eps: added to G inside the root, ≥ 0.
        state_dtype: storage dtype of w₀. None means the params' dtype, or float32 for 16-bit params.

    Raises ValueError without params.

    Ivgi, Hinder & Carmon 2023, arXiv:2302.12022.

    >>> tx, w = scale_by_dog("distance", 0.5, eps=0.0), jnp.zeros(2)
    >>> tx.update(jnp.array([3.0, 4.0]), tx.init(w), w)[0].round(3).tolist()
    [0.30000001192092896, 0.4000000059604645]
    """

    kind: Static[Literal["distance", "learning_rate", "heuristic"]] = "heuristic"
    size: NonNegative = 1e-6
    eps: NonNegative = 1e-8
    state_dtype: Static[DType | None] = None

    def init(self, params):
        start = copy_of(params, self.state_dtype)
        r = {"distance": self.size, "learning_rate": 0.0, "heuristic": self.size * (1 + global_norm(start))}
        return DoGState(jnp.array(True), start, jnp.asarray(r[self.kind], float), jnp.zeros([]))

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        moved = safe_sqrt(total_over_leaves(lambda g, w, w0: abs_sq(w - w0), updates, params, state.init_params))
        r = jnp.maximum(state.max_dist, moved)
        squares = state.sum_sq_norm_grads + total_over_leaves(abs_sq, updates)
        step = safe_divide_by_root(r, squares, self.eps)
        if self.kind == "learning_rate":
            step = jnp.where(state.is_init_step, self.size, step)
        updates = map_leaves(lambda g: step * g, updates, params=params)
        r, squares = cast_like(r, state.max_dist), cast_like(squares, state.sum_sq_norm_grads)
        return updates, DoGState(jnp.zeros_like(state.is_init_step), state.init_params, r, squares)


def _init_step(name: str, x: Any) -> Any:
    if not isinstance(x, tuple | list) or len(x) != 2:
        raise TypeError(f"{name} must be a pair such as ('heuristic', 1e-6), got {x!r}")
    return tuple(x)


@checked
def dog(
    learning_rate: Rate = 1.0,
    init_step: Annotated[Any, Convert(_init_step, "(kind, size)")] = ("heuristic", 1e-6),
    eps: NonNegative = 1e-8,
    weight_decay: Rate | None = None,
    mask: Mask | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """DoG, distance over gradients: w ← w − learning_rate · r·g / √(G + eps). See `scale_by_dog` for r and G.

    Evaluate with an average of the params: put `params_ema`, with a decay near 1, at the end of the chain. The first
    step is about init_step's size long, which 16-bit params round away: wrap the optimizer in `master_weights`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 1.0 is the intended value.
        init_step: `scale_by_dog`'s kind and size.
        weight_decay, mask: added to the gradients first, as in `add_decayed_weights`; None for no decay.

    Ivgi, Hinder & Carmon 2023, arXiv:2302.12022.

    >>> dog(init_step=("distance", 0.1))
    chain(identity(), scale_by_dog(kind='distance', size=0.1), scale_by_learning_rate(1.0))
    """
    kind, size = init_step
    rule = scale_by_dog(kind, size, eps, state_dtype)
    return chain(_decayed(weight_decay, mask), rule, scale_by_learning_rate(learning_rate))


def _decayed(weight_decay: Any, mask: Any) -> GradientTransformation:
    return identity() if weight_decay is None else add_decayed_weights(weight_decay, mask)


class DoWGState(NamedTuple):
    """`init_params`: w₀. `weighted_sq_norm_grads`: G. `estim_sq_dist`: r²."""

    init_params: Params
    weighted_sq_norm_grads: Number
    estim_sq_dist: Number


@transformation
class scale_by_dowg(GradientTransformation):
    """DoWG's step: u = r²·g / (√G + eps), r the largest ‖w − w₀‖ so far, G the sum of all r²·‖g‖², over all leaves.

    Args:
        init_estim_sq_dist: initial r², ≥ 0; eps if None.
        eps: added to √G, ≥ 0.
        state_dtype: storage dtype of w₀. None means the params' dtype, or float32 for 16-bit params.

    Raises ValueError without params.

    Khaled, Mishchenko & Jin 2023, arXiv:2305.16284.

    >>> tx, w = scale_by_dowg(0.25, eps=0.0), jnp.zeros(2)
    >>> tx.update(jnp.array([3.0, 4.0]), tx.init(w), w)[0].round(3).tolist()
    [0.30000001192092896, 0.4000000059604645]
    """

    init_estim_sq_dist: NonNegative | None = None
    eps: NonNegative = 1e-4
    state_dtype: Static[DType | None] = None

    def init(self, params):
        r2 = self.eps if self.init_estim_sq_dist is None else self.init_estim_sq_dist
        return DoWGState(copy_of(params, self.state_dtype), jnp.zeros([]), jnp.asarray(r2, float))

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        moved = total_over_leaves(lambda g, w, w0: abs_sq(w - w0), updates, params, state.init_params)
        r2 = jnp.maximum(state.estim_sq_dist, moved)
        squares = state.weighted_sq_norm_grads + r2 * total_over_leaves(abs_sq, updates)
        step = ratio(r2, safe_sqrt(squares) + self.eps)
        updates = map_leaves(lambda g: step * g, updates, params=params)
        squares, r2 = cast_like(squares, state.weighted_sq_norm_grads), cast_like(r2, state.estim_sq_dist)
        return updates, DoWGState(state.init_params, squares, r2)


@checked
def dowg(
    learning_rate: Rate = 1.0,
    init_estim_sq_dist: NonNegative | None = None,
    eps: NonNegative = 1e-4,
    weight_decay: Rate | None = None,
    mask: Mask | None = None,
    *,
    state_dtype: DType | None = None,
) -> chain:
    """DoWG, distance over weighted gradients: w ← w − learning_rate · r²·g / (√G + eps). See `scale_by_dowg`.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 1.0 is the intended value.
        weight_decay, mask: added to the gradients first, as in `add_decayed_weights`; None for no decay.

    Khaled, Mishchenko & Jin 2023, arXiv:2305.16284.

    >>> dowg()
    chain(identity(), scale_by_dowg(), scale_by_learning_rate(1.0))
    """
    rule = scale_by_dowg(init_estim_sq_dist, eps, state_dtype)
    return chain(_decayed(weight_decay, mask), rule, scale_by_learning_rate(learning_rate))
