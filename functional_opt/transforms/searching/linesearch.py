"""scale_by_backtracking_linesearch: a step that is shortened until it lowers the loss enough."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.checks import Static
from ...core.leaves import Tree, cast_like, cast_tree_like, is_nothing, map_leaves, widen, zeros_like, zip_leaves
from ...core.model_trees import differentiable
from ...core.queries import get
from ...core.ranges import Bound, Count, NonNegative, Range, Scalar, described
from ...core.slots import Counter, Exact, Number, States
from ...core.transformation import GradientTransformation, needs_params, needs_value, transformation

Shrink = Annotated[Scalar, Range("(0, 1)")]
Grow = Annotated[Scalar, Range("[1, inf]")]


class BacktrackingLinesearchInfo(NamedTuple):
    """`num_linesearch_steps`: step sizes tried, int32. `decrease_error`: by how much the last one fails."""

    num_linesearch_steps: Counter
    decrease_error: Number


class ScaleByBacktrackingLinesearchState(NamedTuple):
    """`learning_rate`: the last step size. `value`, `grad`: the loss after it, and ∇f if stored. `info`."""

    learning_rate: Number
    value: Number
    grad: Exact
    info: States


@transformation
class scale_by_backtracking_linesearch(GradientTransformation):
    """Scales a direction d by the first of its guesses η with sufficient decrease (Armijo): u = η·d.

    Sufficient decrease is f(w + η·d) ≤ (1 + rtol)·f(w) + slope_rtol·η·⟨d, ∇f(w)⟩ + atol. The first guess is
    min(increase_factor · the last step's η, max_learning_rate), and each further one is decrease_factor times the one
    before. After max_backtracking_steps of them the last guess is taken as it is. It is set to 0 if f is not finite
    there, or if f is higher and the expected decrease is below its rounding error. Place the transformation last in a
    chain, after a learning rate of 1: `chain(sgd(1.0), ...)`.

    Every step needs `update(grads, state, params, value=f(w), grad=∇f(w), value_fn=f)`. f also gets those extra
    arguments of `update` that it takes by name.

    Args:
        max_backtracking_steps: how often the guess may be shortened, ≥ 0.
        slope_rtol: the fraction of the slope that counts as sufficient, ≥ 0.
        decrease_factor: in (0, 1).
        increase_factor: ≥ 1; with infinity every step starts from max_learning_rate.
        max_learning_rate: the largest η, ≥ 0.
        atol, rtol: tolerances, ≥ 0.
        store_grad: whether to compute ∇f at the new params and keep it: see `value_and_grad_from_state`.
        verbose: whether to print η, its decrease error and the number of guesses at every step.

    Raises ValueError without params, value, grad or value_fn.

    Armijo 1966; Vaswani et al. 2019, arXiv:1905.09997.

    >>> from functional_opt import chain, sgd
    >>> tx, f, w = chain(sgd(1.0), scale_by_backtracking_linesearch(9)), lambda w: 4 * w**2, jnp.array(1.0)
    >>> u, state = tx.update(8 * w, tx.init(w), w, value=f(w), grad=8 * w, value_fn=f)
    >>> round(state[1].learning_rate.item(), 3), bool(f(w + u) < f(w))
    (0.21, True)

    Differs from Optax: after a step of 0 the next guess is max_learning_rate (1 if that is infinite); in Optax it
    stays 0 forever. Past convergence Optax takes steps uphill by rounding errors.
    """

    max_backtracking_steps: Count
    slope_rtol: NonNegative = 1e-4
    decrease_factor: Shrink = 0.8
    increase_factor: Grow = 1.5
    max_learning_rate: Bound = 1.0
    atol: Bound = 0.0
    rtol: Bound = 0.0
    store_grad: Static[bool] = False
    verbose: Static[bool] = False

    def init(self, params):
        info = BacktrackingLinesearchInfo(jnp.zeros([], jnp.int32), jnp.full([], jnp.inf, float))
        grad = zeros_like(params) if self.store_grad else None
        return ScaleByBacktrackingLinesearchState(jnp.ones([]), jnp.full([], jnp.inf, float), grad, info)

    def update(self, updates, state, params=None, *, value=None, grad=None, value_fn=None, **extra):
        needs_params(params, self)
        f = needs_loss(self, value, grad, value_fn, extra)
        down, noise = slope(updates, grad), rounding(value, grad, params)
        value = jnp.asarray(value, state.value.dtype)
        moved = params_along(updates, params)

        def attempt(carry):
            tried, guess, *_ = carry
            new = jnp.asarray(f(moved(guess)), value.dtype)
            error = new - (1 + self.rtol) * value - self.slope_rtol * guess * down - self.atol
            error = jnp.where(jnp.isfinite(new), jnp.maximum(error, 0.0), jnp.inf)
            shorter = guess * self.decrease_factor
            return tried + 1, jnp.asarray(shorter, guess.dtype), guess, new, jnp.asarray(error, value.dtype)

        def goes_on(carry):
            tried, *_, error = carry
            return (tried == 0) | (error > 0) & (tried <= self.max_backtracking_steps)

        before = jnp.where(state.learning_rate > 0, state.learning_rate, jnp.inf)
        guess = jnp.asarray(jnp.minimum(self.increase_factor * before, self.max_learning_rate), before.dtype)
        guess = jnp.where(jnp.isfinite(guess), guess, 1.0)
        start = (jnp.zeros([], jnp.int32), guess, guess, value, jnp.full_like(value, jnp.inf))
        tried, _, rate, new, error = jax.lax.while_loop(goes_on, attempt, start)
        hidden = (error > 0) & (new >= value) & (rate * jnp.abs(down) <= noise)
        moves = jnp.isfinite(new) & ~hidden
        rate, new = jnp.where(moves, rate, 0.0), jnp.where(moves, new, value)
        if self.verbose:
            jax.debug.print("learning_rate={} decrease_error={} num_linesearch_steps={}", rate, error, tried)
        updates = scaled(updates, rate, params)
        new_grad = None
        if self.store_grad:
            _, there = value_and_gradient(f, params_along(updates, params)(1.0), updates)
            new_grad = filled(jax.tree.map(jnp.conj, there), state.grad)
        info = BacktrackingLinesearchInfo(tried, error)
        return updates, ScaleByBacktrackingLinesearchState(rate, new, new_grad, info)


def value_and_grad_from_state(value_fn: Callable[..., Any]) -> Callable[..., tuple[Any, Tree]]:
    """Returns a `value_and_grad` that reads the loss and gradient from a line search's state if it has them.

    Otherwise it computes them. Call it with a state: `value_and_grad(params, *args, state=state, **kwargs)`. The loss
    must be the same function at every step. The gradient is the one that `update` takes, which points uphill: for
    complex params, the conjugate of what `jax.value_and_grad` gives.

    Raises ValueError for a state without a loss and its gradient, KeyError for one with several.

    >>> from functional_opt import chain, sgd
    >>> f, w = lambda w: w**2, jnp.array(1.0)
    >>> tx = chain(sgd(1.0), scale_by_backtracking_linesearch(9, store_grad=True))
    >>> value, grad = value_and_grad_from_state(f)(w, state=tx.init(w))
    >>> value.item(), grad.item()
    (1.0, 2.0)

    Differs from Optax for complex params: its gradient still has to be conjugated.
    """

    def value_and_grad(params, *args, state, **kwargs):
        value, grad = get(state, "value"), get(state, "grad")
        if value is None or grad is None:
            raise ValueError(
                "value_and_grad_from_state needs the state of a line search that keeps the gradient: "
                "scale_by_backtracking_linesearch(..., store_grad=True)"
            )

        def compute():
            new, new_grad = jax.value_and_grad(value_fn)(params, *args, **kwargs)
            return cast_tree_like((new, jax.tree.map(jnp.conj, new_grad)), (value, grad))

        return jax.lax.cond(jnp.isfinite(value), lambda: (value, grad), compute)

    return value_and_grad


def needs_loss(who: GradientTransformation, value: Any, grad: Tree, value_fn: Any, extra: dict) -> Callable:
    """Returns the loss as a function of the params alone. Raises ValueError if an argument is missing."""
    needed = {"value": value, "grad": grad, "value_fn": value_fn}
    if missing := [name for name, x in needed.items() if x is None]:
        raise ValueError(
            f"{type(who).__name__} needs {' and '.join(missing)}: "
            "call update(updates, state, params, value=loss, grad=grads, value_fn=loss_fn)"
        )
    if not callable(value_fn):
        raise TypeError(f"value_fn must be the loss as a function of the params, got {described(value_fn)}")
    needs_value(value, who)
    loss: Callable[..., Any] = partial(value_fn, **_taken(value_fn, extra))

    def scalar(params):
        try:
            value: Any = loss(params)
        except TypeError as e:
            e.add_note("value_fn is called with the params and those extra arguments of update that it names.")
            raise
        if jax.tree.structure(value) != jax.tree.structure(0) or jnp.shape(value) != ():
            got = f"shape {jnp.shape(value)}" if hasattr(value, "shape") else f"a {type(value).__name__}"
            raise ValueError(f"value_fn must return the loss, a scalar, got {got}")
        return value

    return scalar


def params_along(updates: Tree, params: Tree) -> Callable[[Any], Tree]:
    """Returns η ↦ w + η·u, the params a step size away; params without an update stay where they are."""
    treedef, rows = zip_leaves((updates, params), ("updates", "params"))

    def moved(rate):
        new = map_leaves(lambda u, w: w + rate * u, updates, read=(params,), params=params)
        both = zip(rows, treedef.flatten_up_to(new), strict=True)
        return treedef.unflatten([w if is_nothing(u) else x for (u, w), x in both])

    return moved


def scaled(updates: Tree, rate: jax.Array, params: Tree) -> Tree:
    """Multiplies a direction by a step size, in the params' dtypes; 0 gives zeros, even for infinite directions."""
    return map_leaves(lambda u: jnp.where(rate == 0, jnp.zeros_like(u), rate * u), updates, params=params)


def rounding(value: Any, grad: Tree, params: Tree) -> jax.Array:
    """Returns the error bound of a loss, as if all weights were rounded: 4·(ε·|f| + Σ ε·|∂f/∂w|·|w|)."""
    _, rows = zip_leaves((grad, params), ("grad", "params"))
    terms = [_eps(w) * jnp.sum(jnp.abs(widen(g)) * jnp.abs(widen(w))) for g, w in rows if not is_nothing(g)]
    return 4 * sum(terms, _eps(value) * jnp.abs(widen(value)))


def _eps(x: Any) -> float:
    dtype = jnp.result_type(x)
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.inexact) else 0.0


def value_and_gradient(f: Callable, params: Tree, updates: Tree) -> tuple[Any, Tree]:
    """Returns the loss and its gradient, with None for leaves that it cannot be differentiated by."""
    some, among_params, alone = differentiable(params, updates)
    value, grads = jax.value_and_grad(lambda some: f(among_params(some)))(some)
    return value, alone(grads)


def filled(grad: Tree, like: Tree) -> Tree:
    """Returns the gradient in the dtypes of the state, with zeros for leaves that are not trained."""
    return jax.tree.map(lambda x, g: jnp.zeros_like(x) if is_nothing(g) else cast_like(g, x), like, grad)


def slope(updates: Tree, grad: Tree) -> jax.Array:
    """Returns ⟨updates, grad⟩ over all leaves, in float32 or wider."""
    _, rows = zip_leaves((updates, grad), ("updates", "grad"))
    terms = [jnp.sum((widen(u).conj() * widen(g)).real) for u, g in rows if not is_nothing(u)]
    return sum(terms, jnp.zeros([]))


def _taken(fn: Callable, extra: dict) -> dict:
    """Returns the extra arguments that a function takes by name."""
    parameters = inspect.signature(fn).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return extra
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: x for name, x in extra.items() if name in names}
