"""Muon: orthogonalized momentum for matrices, Adam for other leaves."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import Tree, is_nothing, map_leaves, widen_tree, zeros_like
from ..core.paths import Frozen, LeafSelector, Mask, broadcast_prefix, resolve_mask
from ..core.ranges import Decay, DType, NonNegative, PositiveInt
from ..core.schedule import Rate
from ..core.slots import Counter, Number, Signed
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..core.value import value
from ..placement.owners import Distributed
from ..transforms.combining.chain import chain
from ..transforms.combining.nesting import with_children
from ..transforms.combining.select import partition
from ..transforms.matrices.dimension_numbers import (
    AUTO,
    MuonDimensionNumbers,
    MuonNumbers,
    Stacks,
    given_specs,
    numbers_at,
)
from ..transforms.matrices.newton_schulz import (
    PRESETS,
    Coefficients,
    Preconditioning,
    coefficient_rows,
    newton_schulz,
)
from ..transforms.matrices.orthogonalize import map_matrices, needs_matrices, scale_by_shape
from ..transforms.matrices.routing import Layout, leaf_roles
from ..transforms.matrices.widths import BaseParams
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate
from ..transforms.scaling.mup import scale_by_mup
from .adam import adamw


class MuonState(NamedTuple):
    """`count`: steps done. `mu`: running mean of g. `ns_coeffs`: the coefficients last used."""

    count: Counter
    mu: Signed
    ns_coeffs: Number


@transformation
class scale_by_muon(GradientTransformation):
    """Muon's direction: m ← beta·m + (1 − beta)·g; u = orthogonalize(m̂).

    m̂ = m / (1 − betaᵗ); with nesterov m̂ = beta·m / (1 − betaᵗ⁺¹) + (1 − beta)·g / (1 − betaᵗ). Every leaf is a
    matrix, or a stack of matrices in its last two axes.

    Args:
        ns_coeffs, ns_steps, eps, preconditioning, ns_dtype: as in `orthogonalize`.
        beta: decay rate of the mean, in [0, 1).
        mu_dtype, state_dtype: storage dtype of m. Both mean the same, as m is the only slot: Optax has the first, all
            our optimizers the second; the first wins. None means the params' dtype, or float32 for 16-bit params.
        nesterov: whether m̂ looks one step ahead.
        adaptive: whether to multiply u by its inner product with m̂, the dual norm (arXiv:2409.20325).
        weight_dimension_numbers: which axes of a leaf are rows and columns, if not the last two:
            `MuonDimensionNumbers` for all leaves, a tree of them (or a prefix of one), a function from params to such
            a tree, or path rules such as `{"**/query/kernel": MuonDimensionNumbers(0, (1, 2)), "**": "auto"}`. "auto"
            means the numbers that `muon_labels` reads from the path and the shape. A leaf without a rule has None.
            They can also cut a fused matrix into blocks, such as heads or Q, K and V: see `MuonDimensionNumbers`.
        distributed: on a mesh, "owners" gives each device whole matrices of its own (see `orthogonalize`), "local"
            works on them where they lie. None means "owners".

    Raises ValueError for a leaf with fewer than two axes, or without the axes that the numbers name.

    Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.

    >>> tx = scale_by_muon()
    >>> u, state = tx.update(jnp.array([[2.0, 0.0], [0.0, 1.0]]), tx.init(jnp.zeros((2, 2))))
    >>> u.round(1).tolist()
    [[0.699999988079071, 0.0], [0.0, 1.100000023841858]]

    Differs from Optax: the coefficients are those of the transformation, even if its state has others; leaves with
    more axes are stacks even without weight_dimension_numbers; adaptive treats each matrix of a stack separately.
    Differs from PyTorch: with nesterov, m̂ has a bias correction; `trace` with nesterov, followed by `orthogonalize`,
    has none.
    """

    preconditions = True
    stacks_matrices = True
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
    distributed: Static[Distributed | None] = dataclasses.field(default=None, kw_only=True)
    ns_dtype: Static[DType | None] = dataclasses.field(default=None, kw_only=True)

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
            u = newton_schulz(m_hat, rows, self.eps, self.preconditioning, dtype=self.ns_dtype)
            return u * jnp.sum((m_hat.conj() * u).real, axis=(-2, -1), keepdims=True) if self.adaptive else u

        needs_matrices(updates)
        like = stacks.stack(updates if params is None else params)
        m_hat, mu = map_leaves(moments, widen_tree(stacks.stack(updates), "updates"), stacks.stack(state.mu))
        updates, mu = stacks.back(map_matrices(direction, m_hat, like, self.distributed)), stacks.back(mu)
        return updates, MuonState(t, mu, jnp.asarray(self.ns_coeffs, state.ns_coeffs.dtype))


@value
class muon_labels(LeafSelector):
    """Labels for `partition`: "muon" for hidden matrices, "adam" for the others: embeddings, heads and vectors.

    Leaves with two axes are matrices. Two kinds of leaves with more axes are recognized by their paths and their
    neighbours: attention kernels with an axis of heads, (inputs, heads, head size) and (heads, head size, outputs),
    and stacks of scanned layers, whose biases and norms have one more axis too. Other leaves with more axes go to
    Adam, and `describe` warns about them. Biases and the weights of norms count as vectors, whatever their axes.

    `partition` passes the axes of the matrices to those of its transformations that take `weight_dimension_numbers`
    and have none: `scale_by_muon`, `scale_by_normuon`, `scale_by_dion`, `scale_by_shape`, `orthogonalize`.

    Args:
        mask: which matrices, embeddings and heads may have the label "muon"; True for all of them. If None, those
            whose path does not look like that of an embedding or a head: no part of it contains "embed", "unembed" or
            "logits", is "head", "classifier", "emb", "wte" or "wpe", or ends with "_head" or "_emb".
        weight_dimension_numbers: as in `scale_by_muon`. The leaves that have numbers, and only these, are matrices,
            whatever their paths. A leaf with "auto" is treated as without this argument.
        label: the label to use instead of "muon".
        matrix_layout: how matrices are stored: "in_out", (inputs, outputs), as in Flax and Haiku, or "out_in",
            (outputs, inputs), as in Equinox and PyTorch. If None, "in_out", but `describe` warns about leaves called
            "weight".

    >>> params = {"embed": jnp.ones((9, 2)), "kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    >>> muon_labels()(params), muon_labels(True)(params)["embed"]
    ({'bias': 'adam', 'embed': 'adam', 'kernel': 'muon'}, 'muon')
    """

    mask: Static[Mask | None] = None
    weight_dimension_numbers: Static[MuonNumbers | None] = None
    label: Static[str] = "muon"
    matrix_layout: Static[Layout | None] = None

    def __call__(self, params: Tree) -> Tree:
        treedef = jax.tree.structure(params, is_leaf=is_nothing)
        return treedef.unflatten([self.label if spec is not None else "adam" for spec, _, _ in self._routes(params)])

    def informed(self, tx, params):
        """Returns `tx` with the axes of the leaves' rows and columns set in its transformations."""
        leaves, treedef = jax.tree.flatten(params, is_leaf=is_nothing)
        specs, own = tuple(spec for spec, _, _ in self._routes(params)), self.weight_dimension_numbers
        if own is None and all(s is None or _are_last_two(s, x) for s, x in zip(specs, leaves, strict=True)):
            return tx
        numbers = Frozen(specs, treedef)

        def informed_link(link: Any) -> Any:
            if link.stacks_matrices and link.weight_dimension_numbers in (None, own):
                link = dataclasses.replace(link, weight_dimension_numbers=numbers)
            return with_children(link, informed_link)

        return informed_link(tx)

    def reasons(self, params):
        return [why for _, why, _ in self._routes(params)]

    def doubts(self, params):
        return [doubt for _, _, doubt in self._routes(params)]

    def _routes(self, params: Tree) -> list[tuple[MuonDimensionNumbers | None, str, str]]:
        """Returns for each leaf, None included, its dimension numbers if it has the label, the reason, and doubts."""
        found = leaf_roles(params, self.matrix_layout)
        if self.mask is None:
            auto = [(numbers_at(place), f"{place.kind}: {place.why}", place.doubt) for place in found]
        else:
            by_path = ("head", "embedding")  # a mask may send these to Muon too: then the path is not the reason
            shapes = [f"{0 if is_nothing(x) else jnp.ndim(x)}-d" for x in jax.tree.leaves(params, is_leaf=is_nothing)]
            whys = [n if p.kind in by_path else p.why for n, p in zip(shapes, found, strict=True)]
            auto = [(numbers_at(p, ("matrix", *by_path)), why, p.doubt) for p, why in zip(found, whys, strict=True)]
        routes = auto
        if (own := self.weight_dimension_numbers) is not None:
            specs = given_specs(own, params)
            routes = [a if spec == AUTO else (spec, _said(spec), "") for spec, a in zip(specs, auto, strict=True)]
        if self.mask is None:
            return routes
        chosen = jax.tree.leaves(broadcast_prefix(resolve_mask(self.mask, params), params), is_leaf=is_nothing)
        return [r if yes else (None, "mask", "") for r, yes in zip(routes, chosen, strict=True)]


def _said(spec: MuonDimensionNumbers | None) -> str:
    blocks = "" if spec is None else spec.in_words()
    return f"weight_dimension_numbers: {blocks}" if blocks else "weight_dimension_numbers"


def _are_last_two(spec: MuonDimensionNumbers, x: Any) -> bool:
    return spec == MuonDimensionNumbers((jnp.ndim(x) - 2,), (jnp.ndim(x) - 1,))


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
    matrix_layout: Layout | None = None,
    state_dtype: DType | None = None,
    distributed: Distributed | None = None,
    ns_dtype: DType | None = None,
    base_params: BaseParams | None = None,
) -> partition:
    """Muon for hidden matrices, AdamW elsewhere: w ← w − learning_rate · (s · orthogonalize(m̂) + weight_decay · w).

    See `scale_by_muon` and `orthogonalize`, `scale_by_shape` for s, and `adamw` for the other leaves.

    Args:
        learning_rate: a number ≥ 0, a schedule, or a function of the count; 0.02 is usual, or Adam's with
            consistent_rms=0.2.
        weight_decay, weight_decay_mask: for the matrices, as in `add_decayed_weights`.
        adam_learning_rate: learning rate of the other leaves; learning_rate if None.
        muon_weight_dimension_numbers: which leaves are matrices, and which axes are their rows and columns, as in
            `scale_by_muon`. If None, those that `muon_labels` recognizes. A leaf whose numbers are None is not a
            matrix.
        muon_mask: which matrices Muon updates, as in `muon_labels`; all but embeddings and heads if None.
        matrix_layout: "in_out" or "out_in", how matrices are stored; as in `muon_labels`.
        distributed: "owners" or "local", how matrices on a mesh are worked on; as in `scale_by_muon`.
        ns_dtype: dtype of the products that make matrices orthogonal, as in `orthogonalize`.
        base_params: the params of a base model, whose learning rates then fit models of any width, as in
            `scale_by_shape` for the matrices and in `scale_by_mup` for the other leaves. The model must do the other
            half of μP, as `scale_by_mup` says.

    Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982. For base_params: Yang, Simon & Bernstein 2023,
    arXiv:2310.17813, and Yang, Hu et al. 2022, arXiv:2203.03466.

    >>> tx = muon(0.02)
    >>> tx.param_labels({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': 'adam', 'kernel': 'muon'}

    Differs from Optax, which uses Muon for all leaves with two axes and for no others. Here embeddings, heads and
    biases, which `muon_labels` recognizes by their paths, go to AdamW, and attention kernels and stacks of matrices
    go to Muon. With muon_mask=True embeddings and heads go to Muon too. `describe` prints which leaf goes where.
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
        distributed=distributed,
        ns_dtype=ns_dtype,
    )
    matrices = chain(
        rule,
        scale_by_shape(consistent_rms, numbers, base_params=base_params),
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
    if base_params is not None:
        adam, *others = rest.transforms
        rest = chain(adam, scale_by_mup(base_params, matrix_layout=matrix_layout), *others)
    return partition({"adam": rest, "muon": matrices}, muon_labels(muon_mask, numbers, matrix_layout=matrix_layout))
