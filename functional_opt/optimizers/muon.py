"""Muon: momentum, made orthogonal, for matrices; Adam for the rest."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..base import GradientTransformation, increment, transformation, zero_count
from ..leaves import Tree, is_nothing, map_leaves, widen_tree, zeros_like
from ..paths import Mask, resolve_mask, spread
from ..schedules import Rate
from ..slots import Counter, Number, Signed
from ..transforms.chain import chain
from ..transforms.decay import add_decayed_weights
from ..transforms.dimension_numbers import MuonNumbers, Stacks, specs_of
from ..transforms.learning_rate import scale_by_learning_rate
from ..transforms.orthogonalize import (
    PRESETS,
    Coefficients,
    Preconditioning,
    coefficient_rows,
    map_matrices,
    needs_matrices,
    newton_schulz,
    scale_by_shape,
)
from ..transforms.routing import places
from ..transforms.select import partition
from ..value import Decay, DType, NonNegative, PositiveInt, Static, checked, value
from .adam import adamw


class MuonState(NamedTuple):
    """`count`: steps done. `mu`: running mean of g. `ns_coeffs`: the coefficients last used."""

    count: Counter
    mu: Signed
    ns_coeffs: Number


@transformation
class scale_by_muon(GradientTransformation):
    """Muon's direction: m ← beta·m + (1 − beta)·g; u = orthogonalize(m̂).

    m̂ = m / (1 − betaᵗ); with nesterov beta·m / (1 − betaᵗ⁺¹) + (1 − beta)·g / (1 − betaᵗ). Every leaf is a
    matrix, or a stack of matrices over its last two axes.

    Args:
        ns_coeffs, ns_steps, eps, preconditioning: as in `orthogonalize`.
        beta: decay of the mean, in [0, 1).
        mu_dtype, state_dtype: how m is stored (two names of one thing); the params' dtype, float32 for
            16-bit params, if None.
        nesterov: whether m̂ looks one step ahead.
        adaptive: whether u is multiplied by its inner product with m̂, the dual norm (arXiv:2409.20325).
        weight_dimension_numbers: how leaves are matrices, or stacks of them, if not by their last two axes:
            `MuonDimensionNumbers` for all, a tree of them (or a prefix of one), or a function from params to one.

    Raises ValueError for a leaf with fewer than two axes, or not with those that the numbers name.

    Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.

    >>> tx = scale_by_muon()
    >>> u, state = tx.update(jnp.array([[2.0, 0.0], [0.0, 1.0]]), tx.init(jnp.zeros((2, 2))))
    >>> u.round(1).tolist()
    [[0.699999988079071, 0.0], [0.0, 1.100000023841858]]

    Differs from Optax: coefficients are those of the transformation, also where its state has others; leaves
    of more axes are stacks also without weight_dimension_numbers; adaptive is for each matrix of a stack by itself.
    From PyTorch: with nesterov, m̂ is corrected for its start; `trace` with nesterov, then `orthogonalize`, is not.
    """

    preconditions = True
    ns_coeffs: Coefficients = PRESETS["standard"]
    ns_steps: Static[PositiveInt] = 5
    beta: Decay = 0.95
    eps: NonNegative = 1e-8
    mu_dtype: Static[DType | None] = None
    nesterov: Static[bool] = True
    adaptive: Static[bool] = False
    preconditioning: Static[Preconditioning] = "frobenius"
    weight_dimension_numbers: Static[MuonNumbers | None] = dataclasses.field(default=None, kw_only=True)
    state_dtype: Static[DType | None] = None

    def init(self, params):
        Stacks(self.weight_dimension_numbers, params)
        mu = zeros_like(params, self.mu_dtype or self.state_dtype)
        return MuonState(zero_count(), mu, jnp.asarray(self.ns_coeffs, float))

    def update(self, updates, state, params=None, **extra):
        stacks = Stacks(self.weight_dimension_numbers, updates)
        t, beta = increment(state.count), self.beta
        rows = coefficient_rows(self.ns_coeffs, self.ns_steps)

        def moments(g, m):
            m = beta * m + (1 - beta) * g
            if self.nesterov:
                return beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t), m
            return m / (1 - beta**t), m

        def direction(m_hat):
            u = newton_schulz(m_hat, rows, self.eps, self.preconditioning)
            return u * jnp.sum((m_hat.conj() * u).real, axis=(-2, -1), keepdims=True) if self.adaptive else u

        needs_matrices(updates)
        like = stacks.stack(updates if params is None else params)
        m_hat, mu = map_leaves(moments, widen_tree(stacks.stack(updates), "updates"), stacks.stack(state.mu))
        updates, mu = stacks.back(map_matrices(direction, m_hat, like)), stacks.back(mu)
        return updates, MuonState(t, mu, jnp.asarray(self.ns_coeffs, state.ns_coeffs.dtype))


@value
class muon_labels:
    """Labels for `partition`: "muon" for the hidden matrices, "adam" for the others: embeddings, heads and vectors.

    Args:
        mask: which leaves with two axes may have the label "muon". If None, those whose path does not say that they
            are embeddings or heads: no part of it has "embed", "unembed" or "logits" in it, is "head", "classifier",
            "emb", "wte" or "wpe", or ends with "_head" or "_emb". True for all of them, which is Optax's rule.
        weight_dimension_numbers: as in `scale_by_muon`: the leaves that have them are matrices, and only these,
            whatever their paths.
        label: what to say in place of "muon".

    >>> params = {"embed": jnp.ones((9, 2)), "kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    >>> muon_labels()(params), muon_labels(True)(params)["embed"]
    ({'bias': 'adam', 'embed': 'adam', 'kernel': 'muon'}, 'muon')
    """

    mask: Static[Mask | None] = None
    weight_dimension_numbers: Static[MuonNumbers | None] = None
    label: Static[str] = "muon"

    def __call__(self, params: Tree) -> Tree:
        treedef = jax.tree.structure(params, is_leaf=is_nothing)
        return treedef.unflatten([self.label if may else "adam" for may, _ in self._routes(params)])

    def why(self, params: Tree) -> list[str]:
        """What decides on each leaf, for `describe`."""
        return [why for _, why in self._routes(params)]

    def _routes(self, params: Tree) -> list[tuple[bool, str]]:
        """Of each leaf, None counted as one, whether it has the label, and what says so."""
        if self.weight_dimension_numbers is not None:
            specs = specs_of(self.weight_dimension_numbers, params)
            routes = [(spec is not None, "weight_dimension_numbers") for spec in specs]
        elif self.mask is None:
            return [(place == "matrix", f"{place}: {what}") for place, what in places(params)]
        else:
            axes = [0 if is_nothing(x) else jnp.ndim(x) for x in jax.tree.leaves(params, is_leaf=is_nothing)]
            routes = [(n == 2, f"{n}-d") for n in axes]
        if self.mask is None:
            return routes
        chosen = jax.tree.leaves(spread(resolve_mask(self.mask, params), params), is_leaf=is_nothing)
        return [(may and yes, why if yes else "mask") for (may, why), yes in zip(routes, chosen, strict=True)]


@checked
def muon(
    learning_rate: Rate,
    ns_coeffs: Coefficients = PRESETS["standard"],
    ns_steps: PositiveInt = 5,
    beta: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DType | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Preconditioning = "frobenius",
    adam_b1: Decay = 0.9,
    adam_b2: Decay = 0.999,
    adam_eps_root: NonNegative = 0.0,
    adam_weight_decay: Rate = 0.0,
    adam_learning_rate: Rate | None = None,
    muon_weight_dimension_numbers: MuonNumbers | None = None,
    consistent_rms: NonNegative | None = None,
    muon_mask: Mask | None = None,
    state_dtype: DType | None = None,
) -> partition:
    """Muon for hidden matrices, AdamW elsewhere: w ← w − learning_rate · (s · orthogonalize(m̂) + weight_decay · w).

    See `scale_by_muon` and `orthogonalize`, `scale_by_shape` for s, `adamw` for the rest.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 0.02 is usual, or Adam's with
            consistent_rms=0.2.
        weight_decay, weight_decay_mask: of the matrices, as in `add_decayed_weights`.
        adam_learning_rate: that of the rest; learning_rate if None.
        muon_weight_dimension_numbers: which leaves are matrices, and how, as in `scale_by_muon`; those with two axes
            if None. A leaf whose numbers are None is not.
        muon_mask: which leaves with two axes Muon takes, as in `muon_labels`; all but embeddings and heads if None.

    Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982.

    >>> tx = muon(0.02)
    >>> tx.param_labels({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': 'adam', 'kernel': 'muon'}

    Differs from Optax: embeddings and heads, which `muon_labels` knows by their paths, go to AdamW. Optax's rule, all
    leaves with two axes to Muon, is muon_mask=True. `describe` prints who goes where.
    """
    numbers = muon_weight_dimension_numbers
    rule = scale_by_muon(
        ns_coeffs,
        ns_steps,
        beta,
        eps,
        mu_dtype,
        nesterov,
        adaptive,
        preconditioning,
        state_dtype,
        weight_dimension_numbers=numbers,
    )
    matrices = chain(
        rule,
        scale_by_shape(consistent_rms, numbers),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    rest = adamw(
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        adam_b1,
        adam_b2,
        eps,
        adam_eps_root,
        mu_dtype,
        adam_weight_decay,
        nesterov=nesterov,
        state_dtype=state_dtype,
    )
    return partition({"adam": rest, "muon": matrices}, muon_labels(muon_mask, numbers))
