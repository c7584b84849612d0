"""L-BFGS: Newton's direction, from the last few changes of params and gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..base import GradientTransformation, Transformation, increment, needs_params, transformation, zero_count
from ..leaves import is_nothing, narrow, safe_sqrt, widen, zeros_like, zip_leaves
from ..schedules import Rate
from ..slots import Counter, Exact, Exact16, Number, Params
from ..transforms.chain import chain, identity
from ..transforms.learning_rate import scale_by_learning_rate
from ..transforms.zoom import scale_by_zoom_linesearch
from ..value import DType, PositiveInt, Static, checked


class ScaleByLBFGSState(NamedTuple):
    """`count`: steps done. `params`, `updates`: the last w and g.

    `diff_params_memory`, `diff_updates_memory`: the last changes of w and g, along a first axis, the one of
    step t at (t − 1) mod memory_size. `weights_memory`: 1 / ⟨change of w, change of g⟩ of each, 0 for none.
    """

    count: Counter
    params: Params
    updates: Exact
    diff_params_memory: Exact16
    diff_updates_memory: Exact16
    weights_memory: Number


@transformation
class scale_by_lbfgs(GradientTransformation):
    """L-BFGS's direction: u = H·g, H the inverse Hessian by the BFGS formula, from memory_size pairs of changes.

    With s a change of w, y the change of g that came with it and ρ = 1 / ⟨s, y⟩, from the oldest pair to the
    newest: H ← (I − ρ·s·yᵀ)·H·(I − ρ·y·sᵀ) + ρ·s·sᵀ, starting with ⟨s, y⟩ / ‖y‖² of the newest pair (before
    there is one, min(1, 1 / ‖g‖)) times I. All leaves are one vector. A pair with ⟨s, y⟩ ≤ 0 is left out, so
    that H stays positive definite.

    Args:
        memory_size: how many pairs are kept, ≥ 1.
        scale_init_precond: whether H starts as above; as I if not.
        state_dtype: how the changes are stored; the params' dtype, float32 for 16-bit params, if None, which
            the last w and g always have.

    Raises ValueError without params.

    Liu & Nocedal 1989, On the limited memory BFGS method for large scale optimization, Math. Programming 45.

    >>> tx, curvature, w = scale_by_lbfgs(), jnp.array([1.0, 10.0]), jnp.array([0.3, 0.4])
    >>> state = tx.init(w)
    >>> for _ in range(20):
    ...     u, state = tx.update(curvature * w, state, w)
    ...     w = w - u
    >>> bool(jnp.abs(w).max() < 1e-6)
    True

    Differs from Optax, which keeps pairs with ⟨s, y⟩ < 0: its direction may then lead uphill.
    """

    memory_size: Static[PositiveInt] = 10
    scale_init_precond: Static[bool] = True
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
        zip_leaves(
            (updates, params, state.params, state.updates), ("updates", "params", *["the optimizer state"] * 2)
        )
        trees = (updates, params, *state[1:5])
        treedef, rows = zip_leaves(trees, ("updates", "params", *["the optimizer state"] * 4), same_shape=False)
        there = [i for i, row in enumerate(rows) if not is_nothing(row[0])]
        g, w, last_w, last_g, s, y = ([widen(rows[i][k]) for i in there] for k in range(6))

        slot, some = (state.count - 1) % self.memory_size, state.count > 0
        ds, dy = (
            [jnp.where(some, a - b, 0.0) for a, b in zip(*pair, strict=True)] for pair in ((w, last_w), (g, last_g))
        )
        curvature = _dot(ds, dy)
        weight = jnp.where(curvature > 0, 1 / jnp.where(curvature > 0, curvature, 1.0), 0.0)
        s, y = ([m.at[slot].set(d) for m, d in zip(*pair, strict=True)] for pair in ((s, ds), (y, dy)))
        rho = widen(state.weights_memory).at[slot].set(weight)

        u = self._times_inverse_hessian(g, s, y, rho, slot)
        columns = [[row[k] for row in rows] for k in range(6)]
        for k, new in ((0, u), (2, w), (3, g), (4, s), (5, y)):
            for i, x in zip(there, new, strict=True):
                columns[k][i] = narrow(x, columns[1 if k == 0 else k][i])
        updates, _, *trees = (treedef.unflatten(c) for c in columns)
        names = ("params", "updates", "diff_params_memory", "diff_updates_memory")
        weights = narrow(rho, state.weights_memory)
        slots = dict(zip(names, trees, strict=True))
        return updates, ScaleByLBFGSState(count=increment(state.count), weights_memory=weights, **slots)

    def _times_inverse_hessian(self, g, s, y, rho, slot):
        """H·g by the two-loop recursion: Nocedal & Wright 2006, algorithm 7.4."""
        n = self.memory_size

        def at(memory, i):
            return [jax.lax.dynamic_index_in_dim(m, i, keepdims=False) for m in memory]

        def backward(k, carry):
            q, alphas, scale, found = carry
            i = (slot - k) % n
            alpha = rho[i] * _dot(at(s, i), q)
            q = [a - alpha * b for a, b in zip(q, at(y, i), strict=True)]
            squares, new = _dot(at(y, i), at(y, i)), rho[i] > 0
            ratio = 1 / jnp.where(new, rho[i] * squares, 1.0)
            return q, alphas.at[i].set(alpha), jnp.where(new & ~found, ratio, scale), found | new

        def forward(k, r):
            i = (slot + 1 + k) % n
            beta = alphas[i] - rho[i] * _dot(at(y, i), r)
            return [a + beta * b for a, b in zip(r, at(s, i), strict=True)]

        norm = safe_sqrt(_dot(g, g))
        first = jnp.where(norm > 1, 1 / jnp.where(norm > 1, norm, 1.0), 1.0)
        start = (g, jnp.zeros_like(rho), jnp.asarray(first, rho.dtype), jnp.array(False))
        q, alphas, scale, _ = jax.lax.fori_loop(0, n, backward, start)
        if self.scale_init_precond:
            q = [scale * a for a in q]
        return jax.lax.fori_loop(0, n, forward, q)


def _dot(a: list, b: list) -> jax.Array:
    """⟨a, b⟩ over all leaves, real also where they are complex."""
    return sum((jnp.sum((x.conj() * y).real) for x, y in zip(a, b, strict=True)), jnp.zeros([]))


@checked
def lbfgs(
    learning_rate: Rate | None = None,
    memory_size: PositiveInt = 10,
    scale_init_precond: bool = True,
    linesearch: Transformation | None = scale_by_zoom_linesearch(20, initial_guess_strategy="one"),  # noqa: B008
) -> chain:
    """L-BFGS: w ← w − η · learning_rate · H·g, H as in `scale_by_lbfgs`, η found by a line search.

    Args:
        learning_rate: a number ≥ 0, a schedule, a function of the count; None for 1, which suits a line search.
        memory_size, scale_init_precond: as in `scale_by_lbfgs`.
        linesearch: what finds η: `scale_by_zoom_linesearch`, `scale_by_backtracking_linesearch`; None for η = 1.

    With a line search every step needs `update(grads, state, params, value=f(w), grad=∇f(w), value_fn=f)`, f the
    same function at all steps: gradients of other examples at each step make no curvature.

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
    direction = scale_by_lbfgs(memory_size, scale_init_precond)
    return chain(direction, scale_by_learning_rate(learning_rate), linesearch or identity())
