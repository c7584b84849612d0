"""scale_by_zoom_linesearch: a step size that meets the strong Wolfe conditions."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ...core.checks import Static
from ...core.leaves import Tree, cast_like, zeros_like
from ...core.norms import safe_sqrt
from ...core.ranges import Bound, Count, NonNegative
from ...core.sharding import vary_like
from ...core.slots import Counter, Exact, Number, States
from ...core.transformation import GradientTransformation, needs_params, transformation
from .linesearch import Grow, filled, needs_loss, params_along, rounding, scaled, slope, value_and_gradient


class ZoomLinesearchInfo(NamedTuple):
    """`num_linesearch_steps`: step sizes tried, int32. The errors: by how much each condition is missed."""

    num_linesearch_steps: Counter
    decrease_error: Number
    curvature_error: Number


class ScaleByZoomLinesearchState(NamedTuple):
    """`learning_rate`: the last step size. `value`, `grad`: the loss and gradient after it. `info`: the search."""

    learning_rate: Number
    value: Number
    grad: Exact
    info: States


class _Point(NamedTuple):
    """A step size η, the loss φ(η) = f(w + η·d) and its slope φ'(η)."""

    rate: jax.Array
    value: jax.Array
    slope: jax.Array


class _Trial(NamedTuple):
    """A step size that was tried, ∇f there, and by how much it misses each condition."""

    point: _Point
    grad: Tree
    decrease_error: jax.Array
    curvature_error: jax.Array


class _Search(NamedTuple):
    """The state of the search. Once `zooming`, a good step size lies between the rates of `low` and `high`.

    `low` has the least loss of the steps tried that decrease it enough. `third` is the previous value of one of the
    two ends. `safe` is the step to take if none meets both conditions. `tried` counts the steps tried.
    """

    tried: jax.Array
    zooming: jax.Array
    ended: jax.Array
    low: _Point
    high: _Point
    third: _Point
    last: _Trial
    safe: _Trial


@transformation
class scale_by_zoom_linesearch(GradientTransformation):
    """Scales a direction d by a step size η that meets the strong Wolfe conditions: u = η·d.

    With φ(η) = f(w + η·d) these are sufficient decrease, φ(η) ≤ φ(0) + slope_rtol·η·φ'(0) + tol, and small curvature,
    |φ'(η)| ≤ curv_rtol·|φ'(0)| + tol. First η grows by increase_factor until a step that meets them must lie between
    two that were tried. Then each new step replaces one end of this interval: the minimum of a cubic or a parabola
    through the known points, or the middle. If φ(η) ≤ φ(0) + approx_dec_rtol·|φ(0)|, rounding may hide the decrease,
    and φ'(η) ≤ (2·slope_rtol − 1)·φ'(0) + tol is accepted in place of sufficient decrease.

    If no step meets both conditions, the best step in the interval with sufficient decrease is taken, or the last
    such step before there was an interval. If no step has sufficient decrease, the last one tried is taken. It is set
    to 0 if the loss there is not finite, or if the loss is higher and the expected decrease is below its rounding
    error. Place the transformation last in a chain, after a learning rate of 1.

    Every step needs `update(grads, state, params, value=f(w), grad=∇f(w), value_fn=f)`. f also gets those extra
    arguments of `update` that it takes by name. `value_and_grad_from_state` avoids computing f(w) and ∇f(w) again.

    Args:
        max_linesearch_steps: how many step sizes may be tried, ≥ 0; each evaluates f and its gradient.
        max_learning_rate: the largest η, ≥ 0; None for no bound.
        tol: tolerance of both conditions, ≥ 0.
        increase_factor: the growth of η before there is an interval, ≥ 1.
        slope_rtol: the fraction of the slope that counts as sufficient, ≥ 0, below curv_rtol.
        curv_rtol: the fraction of the slope that may remain, ≥ 0; infinity to require sufficient decrease only.
        approx_dec_rtol: tolerance of the approximate decrease, as above, ≥ 0; None to turn it off.
        stepsize_precision: the search ends if the interval is shorter than this and a step has sufficient decrease.
        initial_guess_strategy: the first η tried: "one", for Newton and quasi-Newton directions, or "keep" for the
            η of the last step.
        verbose: whether to print the errors of a search that fails.

    Raises ValueError without params, value, grad or value_fn.

    Nocedal & Wright 2006, Numerical Optimization, algorithms 3.5 and 3.6; the approximate condition: Hager & Zhang
    2006, Algorithm 851: CG_DESCENT.

    >>> from functional_opt import chain, sgd
    >>> tx, f, w = chain(sgd(1.0), scale_by_zoom_linesearch(15)), lambda w: 4 * w**2, jnp.array(1.0)
    >>> u, state = tx.update(8 * w, tx.init(w), w, value=f(w), grad=8 * w, value_fn=f)
    >>> state[1].learning_rate.item(), (w + u).item()
    (0.125, 0.0)

    Differs from Optax, which may step to a loss of −∞, or uphill by rounding errors past convergence; whose `info`
    has the errors of the last step tried, not of the one taken; and which rejects extra arguments that f does not
    take. After a step of 0 the first η tried is 1; in Optax it stays 0 forever with "keep".
    """

    max_linesearch_steps: Count
    max_learning_rate: Bound | None = None
    tol: Bound = 0.0
    increase_factor: Grow = 2.0
    slope_rtol: NonNegative = 1e-4
    curv_rtol: Bound = 0.9
    approx_dec_rtol: Bound | None = 1e-6
    stepsize_precision: NonNegative = 1e-5
    initial_guess_strategy: Static[Literal["one", "keep"]] = "keep"
    verbose: Static[bool] = False

    def init(self, params):
        value, *errors = (jnp.full([], jnp.inf, float) for _ in range(3))
        info = ZoomLinesearchInfo(jnp.zeros([], jnp.int32), *errors)
        return ScaleByZoomLinesearchState(jnp.ones([]), value, zeros_like(params), info)

    def update(self, updates, state, params=None, *, value=None, grad=None, value_fn=None, **extra):
        needs_params(params, self)
        f = needs_loss(self, value, grad, value_fn, extra)
        dtype = state.value.dtype
        move, noise = params_along(updates, params), rounding(value, grad, params)

        def phi(rate):
            new, grad = value_and_gradient(f, move(rate), updates)
            grad = filled(jax.tree.map(jnp.conj, grad), state.grad)
            return _Point(rate, jnp.asarray(new, dtype), jnp.asarray(slope(updates, grad), dtype)), grad

        zero = jnp.zeros([], dtype)
        start = _Point(zero, jnp.asarray(value, dtype), jnp.asarray(slope(updates, grad), dtype))
        guess = jnp.ones_like(zero)
        if self.initial_guess_strategy == "keep":
            guess = jnp.where(state.learning_rate > 0, jnp.asarray(state.learning_rate, dtype), guess)

        def goes_on(search):
            return ~search.ended & (search.tried < self.max_linesearch_steps)

        def attempt(search):
            rate = jnp.where(search.tried == 0, guess, self.increase_factor * search.low.rate)
            rate = jnp.where(search.zooming, _between(search.low, search.high, search.third), self._bounded(rate))
            point, grad = phi(jnp.asarray(rate, dtype))
            trial = _Trial(point, grad, *(jnp.asarray(e, dtype) for e in self._errors(start, point)))
            return self._next(search, trial)

        nowhere = _Trial(start, filled(grad, state.grad), *(jnp.full_like(zero, jnp.inf),) * 2)
        no = jnp.zeros([], bool)
        search = _Search(jnp.zeros([], jnp.int32), no, no, start, start, start, nowhere, nowhere)
        search = jax.lax.while_loop(goes_on, attempt, vary_like(search, (params, updates, value)))
        last, safe = search.last, search.safe
        done = (last.decrease_error <= self.tol) & (last.curvature_error <= self.tol)
        best = _where(done | ~(safe.decrease_error <= self.tol), last, safe)
        gain = best.point.rate * abs(start.slope)
        hidden = (best.decrease_error > self.tol) & (best.point.value >= start.value) & (gain <= noise)
        info = ZoomLinesearchInfo(search.tried, best.decrease_error, best.curvature_error)
        best = _where(jnp.isfinite(best.point.value) & ~hidden, best, nowhere)
        rate, new, _ = best.point
        if self.verbose:
            self._tell(start, rate, info)
        state = ScaleByZoomLinesearchState(cast_like(rate, state.learning_rate), new, best.grad, info)
        return scaled(updates, rate, params), state

    def _bounded(self, rate):
        return rate if self.max_learning_rate is None else jnp.minimum(rate, self.max_learning_rate)

    def _errors(self, start, point):
        """Returns by how much a step misses sufficient decrease and small curvature."""
        decrease = point.value - start.value - self.slope_rtol * point.rate * start.slope
        if self.approx_dec_rtol is not None:
            near = point.value - start.value - self.approx_dec_rtol * abs(start.value)
            flat = point.slope - (2 * self.slope_rtol - 1) * start.slope
            decrease = jnp.minimum(decrease, jnp.maximum(near, flat))
        curvature = abs(point.slope) - self.curv_rtol * abs(start.slope)
        finite = jnp.isfinite(point.value) & jnp.isfinite(point.slope)
        return (jnp.where(finite, jnp.maximum(e, 0.0), jnp.inf) for e in (decrease, curvature))

    def _next(self, search, trial):
        """Does one round of algorithm 3.5, or of 3.6 while zooming."""
        tried, zooming, _, low, high, third, _, safe = search
        new = trial.point
        above = (trial.decrease_error > 0) | (new.value >= low.value) & (tried > 0)
        turned = jnp.where(zooming, new.slope * (high.rate - low.rate) >= 0, new.slope >= 0)
        found = zooming | above | turned
        next_low = _where(above, low, new)
        next_high = _where(above, new, _where(turned, low, high))
        next_third = _where(zooming, _where(above | turned, high, low), next_low)

        enough = trial.decrease_error <= self.tol
        safe = _where(enough & (~zooming | (new.value < safe.point.value)), trial, safe)
        stuck = ~found & (new.rate >= self._bounded(jnp.inf))
        short = zooming & (abs(high.rate - low.rate) <= self.stepsize_precision) & (safe.decrease_error <= self.tol)
        ended = enough & (trial.curvature_error <= self.tol) | stuck | short
        return _Search(tried + 1, found, ended, next_low, next_high, next_third, trial, safe)

    def _tell(self, start, rate, info):
        jax.lax.cond(
            (info.decrease_error > self.tol) | (info.curvature_error > self.tol),
            lambda: jax.debug.print(
                "scale_by_zoom_linesearch failed: learning_rate={} slope={} decrease_error={} curvature_error={} "
                "num_linesearch_steps={}",
                *(rate, start.slope, info.decrease_error, info.curvature_error, info.num_linesearch_steps),
            ),
            lambda: None,
        )


def _where(chosen: jax.Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(chosen, x, y), a, b)


def _between(low: _Point, high: _Point, third: _Point) -> jax.Array:
    """Returns a step between two: a cubic's or a parabola's minimum if it is not too near an end, or the middle."""
    width = abs(high.rate - low.rate)
    left, right = jnp.minimum(low.rate, high.rate), jnp.maximum(low.rate, high.rate)

    def inside(rate, share):
        return (rate > left + share * width) & (rate < right - share * width)

    cubic, parabola = _cubic_minimum(low, high, third), _parabola_minimum(low, high)
    middle = (low.rate + high.rate) / 2
    return jnp.where(inside(cubic, 0.2), cubic, jnp.where(inside(parabola, 0.1), parabola, middle))


def _parabola_minimum(low: _Point, high: _Point) -> jax.Array:
    """Returns the minimum of the parabola with both values and the slope at `low`; not finite if there is none."""
    width = high.rate - low.rate
    fall = low.slope * width
    return low.rate - width * fall / (2 * (high.value - low.value - fall))


def _cubic_minimum(low: _Point, high: _Point, third: _Point) -> jax.Array:
    """Returns the minimum of the cubic with all three values and the slope at `low`; NaN if there is none.

    Equation 3.59, in units of the distance from `low` to `high` and of the largest coefficient, so that no power of a
    short distance underflows.
    """
    width = high.rate - low.rate
    fall, t = low.slope * width, (third.rate - low.rate) / width
    over_one, over_t = high.value - low.value - fall, (third.value - low.value - fall * t) / t / t
    cube = (over_one - over_t) / (1 - t)
    square = over_one - cube
    size = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(abs(cube), abs(square)), abs(fall)))
    cube, square, fall = (x / size for x in (cube, square, fall))
    root = safe_sqrt(square**2 - 3 * cube * fall)
    return low.rate + width * (root - square) / (3 * cube)
