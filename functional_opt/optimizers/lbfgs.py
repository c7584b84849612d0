"""L-BFGS: an approximate Newton direction from the last few changes of params and gradients."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import as_updates, cast_like, is_nothing, map_leaves, widen, zeros_like, zip_leaves
from ..core.ranges import DType, PositiveInt
from ..core.schedule import Rate
from ..core.slots import Counter, Exact, Exact16, Number, Params
from ..core.transformation import (
    GradientTransformation,
    Transformation,
    increment,
    needs_params,
    transformation,
    zero_count,
)
from ..transforms.combining.chain import chain, identity
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from ..transforms.searching.zoom import scale_by_zoom_linesearch
from .curvature import largest, pair, times_inverse_hessian


class ScaleByLBFGSState(NamedTuple):
    """`count`: steps done. `params`, `updates`: the last w and g.

    `diff_params_memory`, `diff_updates_memory`: the last changes of w and g, stacked along a first axis; that of step
    t is at (t − 1) mod memory_size. `weights_memory`: 1 / ⟨change of w, change of g⟩ of each pair, 0 for pairs that
    do not count.
    """

    count: Counter
    params: Params
    updates: Exact
    diff_params_memory: Exact16
    diff_updates_memory: Exact16
    weights_memory: Number


@transformation
class scale_by_lbfgs(GradientTransformation):
    """L-BFGS's direction: u = H·g, H the BFGS estimate of the inverse Hessian from memory_size pairs of changes.

    For each pair, from the oldest to the newest, with s a change of w, y the change of g that came with it and
    ρ = 1 / ⟨s, y⟩: H ← (I − ρ·s·yᵀ)·H·(I − ρ·y·sᵀ) + ρ·s·sᵀ. H starts as I times ⟨s, y⟩ / ‖y‖² of the newest pair, or
    times min(1, 1 / ‖g‖) before the first pair. All leaves together form one vector.

    A pair counts if ⟨s, y⟩ > 0 by more than rounding error, so that H stays positive definite. A change makes no pair
    if it is not finite or is indistinguishable from rounding error (no weight has moved by more than its last digit,
    or ⟨s, y⟩ underflows). The memory then stays as it is, and the next change is measured from the same point; but if
    the change is not finite and the new gradient is, it is measured from the new point. So a gradient that is not
    finite gives such an update, which `apply_if_finite` skips, and leaves H as it was.

    Args:
        memory_size: number of pairs to keep, ≥ 1.
        scale_init_precond: whether H starts as above; it starts as I otherwise.
        negative_curvature: "skip" ignores pairs with ⟨s, y⟩ < 0. With "keep" they count, and H may lead uphill, to a
            saddle point or a maximum, as Newton's method does.
        state_dtype: storage dtype of the changes. None means the params' dtype, or float32 for 16-bit params; the
            last w and g always have that dtype.

    Raises ValueError without params.

    Liu & Nocedal 1989, On the limited memory BFGS method for large scale optimization, Math. Programming 45.

    >>> tx, curvature, w = scale_by_lbfgs(), jnp.array([1.0, 10.0]), jnp.array([0.3, 0.4])
    >>> state = tx.init(w)
    >>> for _ in range(20):
    ...     u, state = tx.update(curvature * w, state, w)
    ...     w = w - u
    >>> bool(jnp.abs(w).max() < 1e-6)
    True

    Differs from Optax, which keeps pairs with ⟨s, y⟩ < 0 and pairs that are only rounding error.
    """

    memory_size: Static[PositiveInt] = 10
    scale_init_precond: Static[bool] = True
    negative_curvature: Static[Literal["skip", "keep"]] = "skip"
    state_dtype: Static[DType | None] = None

    def init(self, params):
        def stacked(p):
            shape = (self.memory_size, *jnp.shape(p))
            if isinstance(p, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct(shape, p.dtype)
            return jnp.broadcast_to(jnp.asarray(p), shape)

        memory = jax.tree.map(stacked, params)
        w, g = (zeros_like(params) for _ in range(2))
        s, y = (zeros_like(memory, self.state_dtype) for _ in range(2))
        return ScaleByLBFGSState(zero_count(), w, g, s, y, jnp.zeros(self.memory_size))

    def update(self, updates, state, params=None, **extra):
        needs_params(params, self)
        count, first = increment(state.count), state.count == 0
        slots = (state.params, state.updates)
        _, *now = map_leaves(lambda g, w0, g0, w: (g, w, g), updates, *slots, read=(params,))
        trees = (updates, *now, *slots, state.diff_params_memory, state.diff_updates_memory, params)
        names = ("updates", *["the optimizer state"] * 6, "params")
        treedef, rows = zip_leaves(trees, names, same_shape=False)
        there = [i for i, row in enumerate(rows) if not is_nothing(row[0])]
        g, w, g1, w0, g0, s, y, like = ([jnp.asarray(rows[i][k]) for i in there] for k in range(8))

        ds, dy = ([cast_like(widen(a) - widen(b), a) for a, b in zip(*ab, strict=True)] for ab in ((w, w0), (g1, g0)))
        new, rho = pair([*map(widen, ds)], [*map(widen, dy)]), jnp.asarray(state.weights_memory)
        finite = jnp.isfinite(new.size_s) & jnp.isfinite(new.size_y)
        nothing = first | ~finite | ~_moved(ds, w, like) | (new.size_s * new.size_y < _least(new.weight, rho))
        usable = jnp.isfinite(new.weight) & jnp.isfinite(new.scale)
        cosine = new.cosine if self.negative_curvature == "skip" else jnp.abs(new.cosine)
        weight = jnp.where(usable & (cosine > jnp.finfo(cosine.dtype).eps), new.weight, 0.0)

        slot = (state.count - 1) % self.memory_size
        rows_of = (ds, dy, cast_like(weight, rho))
        s, y, rho = jax.lax.cond(
            nothing,
            lambda memory: jax.tree.map(lambda m: jnp.roll(m, 1, axis=0), memory),
            lambda memory: jax.tree.map(lambda m, x: m.at[slot].set(x), memory, rows_of),
            (s, y, rho),
        )
        wide = [*map(widen, g)]
        u = times_inverse_hessian(wide, s, y, rho, slot, self.scale_init_precond)

        taken = first | ~nothing | ~finite & jnp.isfinite(largest(wide))
        w, g1 = ([jnp.where(taken, a, b) for a, b in zip(*ab, strict=True)] for ab in ((w, w0), (g1, g0)))
        columns = [[row[k] for row in rows] for k in range(7)]
        for k, results in ((0, u), (1, w), (2, g1), (5, s), (6, y)):
            for i, x in zip(there, results, strict=True):
                columns[k][i] = x
        u, w, g1, _, _, s, y = (treedef.unflatten(column) for column in columns)
        updates = as_updates(u, updates, params)
        return updates, ScaleByLBFGSState(count, w, g1, s, y, rho)


def _moved(ds: list, w: list, like: list) -> jax.Array:
    """Returns whether any weight has moved by more than its last digit in the dtype of the params."""
    moves = [
        jnp.any(jnp.abs(widen(d)) > jnp.finfo(p.dtype).eps * jnp.abs(widen(x)))
        for d, x, p in zip(ds, w, like, strict=True)
    ]
    return functools.reduce(jnp.logical_or, moves, jnp.array(False))


def _least(weight: jax.Array, stored: jax.Array) -> float:
    """Returns the least ⟨s, y⟩ for which a float can hold the inverse and the derivative of the inverse."""
    return max(float(jnp.finfo(weight.dtype).tiny) ** (2 / 3), 1 / float(jnp.finfo(stored.dtype).max))


@checked
def lbfgs(
    learning_rate: Rate | None = None,
    memory_size: PositiveInt = 10,
    scale_init_precond: bool = True,
    linesearch: Transformation | None = scale_by_zoom_linesearch(20, initial_guess_strategy="one"),  # noqa: B008
    *,
    negative_curvature: Literal["skip", "keep"] | None = None,
) -> chain:
    """L-BFGS: w ← w − η · learning_rate · H·g, H as in `scale_by_lbfgs`, η found by a line search.

    Args:
        learning_rate: a number ≥ 0, a schedule, a function of the count; None for 1, which suits a line search.
        memory_size, scale_init_precond: as in `scale_by_lbfgs`.
        linesearch: the line search that finds η, `scale_by_zoom_linesearch` or `scale_by_backtracking_linesearch`;
            None for η = 1.
        negative_curvature: as in `scale_by_lbfgs`. None means "skip" with a line search, which needs a descent
            direction, and "keep" without one, which is the plain recursion.

    With a line search, every step needs `update(grads, state, params, value=f(w), grad=∇f(w), value_fn=f)`. f must be
    the same function at all steps: the change between gradients of different examples is not curvature.

    Liu & Nocedal 1989; Nocedal & Wright 2006, Numerical Optimization, algorithm 7.5.

    >>> from functional_opt import value_and_grad_from_state
    >>> f = lambda w: (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2
    >>> tx, w, value_and_grad = lbfgs(), jnp.array([-1.2, 1.0]), value_and_grad_from_state(f)
    >>> def step(_, carry):
    ...     w, state = carry
    ...     value, grad = value_and_grad(w, state=state)
    ...     updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=f)
    ...     return w + updates, state
    >>> w, state = jax.lax.fori_loop(0, 40, step, (w, tx.init(w)))
    >>> w.round(3).tolist()
    [1.0, 1.0]

    Differs from Optax as `scale_by_lbfgs` and the line searches do.
    """
    if negative_curvature is None:
        negative_curvature = "keep" if linesearch is None else "skip"
    direction = scale_by_lbfgs(memory_size, scale_init_precond, negative_curvature)
    return chain(direction, scale_by_learning_rate(learning_rate), linesearch or identity())
