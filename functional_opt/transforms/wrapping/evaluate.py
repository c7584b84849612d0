"""params_ema, eval_params: running means of the params, and the params to evaluate with."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ...core import kernels
from ...core.checks import Static
from ...core.leaves import Tree, cast_like, copy_of, is_nothing, map_leaves, widen, zeros_like
from ...core.model_trees import boxed_like, children_of, unboxed
from ...core.paths import MaskedNode
from ...core.ranges import DType, Range
from ...core.schedule import OrSchedule, ScalarOrSchedule, rate_at
from ...core.slots import Counter, Number, Params
from ...core.transformation import GradientTransformation, increment, needs_params, transformation, zero_count


@runtime_checkable
class HasEvalParams(Protocol):
    """A state or params that provide the params to evaluate with."""

    def eval_params(self, params: Tree) -> Tree:
        """Returns the params to evaluate with, None for leaves that it does not cover."""
        ...


def eval_params(state: Any, params: Tree) -> Tree:
    """Returns the params to evaluate and keep, in their dtypes: an average, slow params, or `params` themselves.

    A state provides such params by a method `eval_params(params)`, which returns None for leaves that it does not
    cover. The states of `params_ema`, `lookahead` and `schedule_free` have one. They are found in any pytree: in a
    chain, under a mask, in a group, in a `TrainState`. Leaves that no such state covers stay as they are. If several
    cover a leaf, the last in a chain and the outermost of nested ones wins.

    Args:
        state: any state, including nnx's `optimizer.opt_state`, whose arrays are in variables.
        params: the params being trained. The result has their structure: for `nnx.state(model, nnx.Param)` it holds
            variables, which `nnx.update(model, ...)` takes. For a `LookaheadParams` the result is its slow params.

    Raises ValueError for params of another structure than those that the state was made for, and if the two arguments
    are swapped.

    >>> from functional_opt import adam, chain
    >>> tx, params = chain(adam(0.1), params_ema(0.9)), {"w": jnp.array(1.0)}
    >>> u, state = tx.update({"w": jnp.array(1.0)}, tx.init(params), params)
    >>> eval_params(state, params)["w"].round(3).item() == (params["w"] + u["w"]).round(3).item()
    True
    """
    if isinstance(params, HasEvalParams):
        return params.eval_params(params)
    state, result = unboxed(state), (plain := unboxed(params))
    speakers = list(_speakers(state))
    if not speakers and any(True for _ in _speakers(plain)):
        raise ValueError(
            "the second argument has an average in it, the first has none: call eval_params(state, params)"
        )
    for one in speakers:
        try:
            said = one.eval_params(plain)
            result = jax.tree.map(lambda new, old: old if new is None else new, said, result, is_leaf=is_nothing)
        except (ValueError, TypeError) as e:
            raise ValueError(
                f"params must have the structure of those that the {type(one).__name__} was made for; {e}"
            ) from e
    return boxed_like(result, params)


def _speakers(state: Any) -> Iterator[Any]:
    """Yields the states that have a method `eval_params`, inner ones first."""
    for x in children_of(state):
        yield from _speakers(x)
    if isinstance(state, HasEvalParams):
        yield state


def where_kept(read: Callable, params: Tree, kept: Tree, *more: Tree) -> Tree:
    """Returns `read(param, kept, ...)` for each leaf, in the dtype of the params; None where nothing is kept."""

    def leaf(x, w, *rest):
        if is_nothing(x) or isinstance(x, MaskedNode):  # not covered by this state
            return None
        return cast_like(read(widen(w), widen(x), *rest), w)

    return jax.tree.map(leaf, kept, params, *more, is_leaf=lambda x: is_nothing(x) or isinstance(x, MaskedNode))


class ParamsEmaState(NamedTuple):
    """`count`: steps done. `ema`: the running sum. `missing`: for each leaf, 1 minus its total weight."""

    count: Counter
    ema: Params
    missing: Number

    def eval_params(self, params: Tree) -> Tree:
        """Returns the mean, or the param itself before its first update. See `functional_opt.eval_params`."""

        def leaf(w, m, missing):
            return jnp.where(missing == 1, w, m / jnp.where(missing == 1, 1.0, 1 - missing))

        return where_kept(leaf, params, self.ema, self.missing)


@transformation
class params_ema(GradientTransformation):
    """Leaves the updates as they are and keeps a running mean of the params: m ← decay·m + (1 − decay)·(w + u).

    Place it last in a chain, where w + u are the next params. `eval_params(state, params)` returns the mean. With
    debias this is m / (1 − decayᵗ), and m starts at zero; otherwise it is m, which starts at the params.

    Args:
        decay: in [0, 1), a schedule, or a function of the count, such as `lambda t: (1 + t) / (10 + t)`.
        debias: whether to leave the initial params out of the mean.
        accumulator_dtype: the dtype of the stored mean; if None, the params' dtype, or float32 for 16-bit params.

    Raises ValueError without params.

    Polyak & Juditsky 1992, SIAM J. Control Optim. 30(4); the debiasing as in Kingma & Ba 2014,
    arXiv:1412.6980, section 3.

    >>> tx, w = params_ema(0.5), jnp.array(1.0)
    >>> _, state = tx.update(jnp.array(1.0), tx.init(w), w)
    >>> _, state = tx.update(jnp.array(3.0), state, jnp.array(2.0))
    >>> state.ema.item(), eval_params(state, w).item()
    (3.0, 4.0)
    """

    decay: Annotated[ScalarOrSchedule, OrSchedule(Range("[0, 1)"))]
    debias: Static[bool] = True
    accumulator_dtype: Static[DType | None] = None

    def init(self, params):
        dtype = self.accumulator_dtype
        ema = zeros_like(params, dtype) if self.debias else copy_of(params, dtype)
        missing = jax.tree.map(lambda _: jnp.full([], 1.0 if self.debias else 0.0, float), params)
        return ParamsEmaState(zero_count(), ema, missing)

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        decay = rate_at(self.decay, state.count)

        def leaf(u, m, w):
            return u, decay * m + (1 - decay) * (w + u)

        _, ema = map_leaves(leaf, updates, state.ema, read=(params,), params=params)
        _, missing = map_leaves(lambda u, x: (u, decay * x), updates, state.missing, same_shape=False)
        return updates, ParamsEmaState(increment(state.count), ema, missing)

    def as_kernel(self, state, params):
        decay = rate_at(self.decay, state.count)
        return (kernels.KernelOp("ema", kernels.EmaScalars(decay, 1 - decay), (state.ema,)),)
