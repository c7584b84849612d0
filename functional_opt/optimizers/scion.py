"""Scion: steps to the boundary of a ball, in a norm that suits each leaf's role in the model."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from ..core.checks import Static, checked
from ..core.leaves import Tree, as_updates, is_nothing, map_leaves, paths, widen_tree, zeros_like, zip_leaves
from ..core.model_trees import visible
from ..core.norms import abs_sq, safe_sqrt
from ..core.paths import Labels, broadcast_prefix, resolve_labels
from ..core.ranges import DType, Fraction, NonNegative, PositiveInt
from ..core.schedule import Rate
from ..core.slots import Counter, Signed
from ..core.transformation import GradientTransformation, increment, transformation, zero_count
from ..placement.owners import Distributed
from ..transforms.combining.chain import chain
from ..transforms.matrices.dimension_numbers import AUTO, MuonNumbers, Stacks, given_specs, numbers_at
from ..transforms.matrices.newton_schulz import PRESETS, Coefficients, coefficient_rows, newton_schulz
from ..transforms.matrices.orthogonalize import map_matrices
from ..transforms.matrices.routing import Layout, leaf_roles
from ..transforms.scaling.decay import add_decayed_weights
from ..transforms.scaling.learning_rate import scale_by_learning_rate

Norm = Literal["spectral", "sign", "per_input", "per_output", "rms"]
BY_PLACE = {"matrix": "spectral", "head": "sign", "embedding": "per_input", "other": "rms", "vector": "rms"}


class ScaleByScionState(NamedTuple):
    """`count`: steps done. `mu`: running mean of g, the paper's d."""

    count: Counter
    mu: Signed


@transformation
class scale_by_scion(GradientTransformation):
    """Scion's direction: d ← (1 − momentum)·d + momentum·g; u = scale · the point of the unit ball farthest along d.

    A kernel has the shape (inputs, outputs); the inputs of an embedding are the tokens. Attention kernels and stacks
    of matrices are recognized as by `muon_labels`. The unit balls:

    - "spectral": u = √(outputs / inputs) · orthogonalize(d), for hidden matrices, and stacks of them;
    - "sign": u = sign(d) / inputs, for the output layer;
    - "per_input": √outputs · d / ‖d‖ for the weights of each input (the paper's ColNorm), for embeddings;
    - "per_output": d / (√inputs · ‖d‖) for the weights of each output (RowNorm);
    - "rms": d / rms(d), for vectors, scalars and other leaves with more than two axes.

    Args:
        momentum: weight of the gradient, in [0, 1]; it is 1 − beta of other optimizers.
        norms: the norm of each leaf: a tree of these names, a function from params to such a tree, or path rules such
            as `{"*/embedding": "per_input", "*/bias": "rms", "**": "spectral"}`. If None, norms are chosen as above,
            with embeddings and heads recognized by their paths as in `muon_labels`. `describe` prints the result.
        scale: radius of the ball, ≥ 0.
        sign_scale: radius for the leaves with the norm "sign".
        eps: added to the norms that are divisors, ≥ 0.
        ns_coeffs, ns_steps, ns_dtype: as in `orthogonalize`.
        state_dtype: storage dtype of d. None means the params' dtype, or float32 for 16-bit params.
        weight_dimension_numbers: which axes are rows and columns, as in `scale_by_muon`. None means "auto". A leaf
            without numbers uses its last two axes.
        matrix_layout: "in_out" or "out_in", how matrices are stored; as in `muon_labels`.
        distributed: on a mesh, "owners" gives each device whole matrices of its own (see `orthogonalize`), "local"
            works on them where they lie. None means "owners".

    Raises ValueError, naming the leaf, for an unknown norm and for a norm that needs more axes than the leaf has.

    Pethick et al. 2025, arXiv:2502.07529. The default scales are those of the authors' nanoGPT, where one matrix is
    both embedding and head and has the norm "sign". Their MLPs use 1 and 1024, their convolutional networks 8 and
    128. Their norm for convolutions is not included.

    >>> tx, g = scale_by_scion(scale=1.0, sign_scale=1.0), {"lm_head": jnp.array([[3.0], [-1.0]]), "b": jnp.ones(2)}
    >>> u, _ = tx.update(g, tx.init(g))
    >>> u["lm_head"].tolist(), u["b"].round(3).tolist()
    ([[0.5], [-0.5]], [1.0, 1.0])
    """

    preconditions = True
    momentum: Fraction = 0.1
    norms: Static[Labels | None] = None
    scale: NonNegative = 50.0
    sign_scale: NonNegative = 3000.0
    eps: NonNegative = 1e-8
    ns_coeffs: Coefficients = PRESETS["standard"]
    ns_steps: Static[PositiveInt] = 5
    state_dtype: Static[DType | None] = None
    weight_dimension_numbers: Static[MuonNumbers | None] = None
    matrix_layout: Static[Layout | None] = None
    distributed: Static[Distributed | None] = None
    ns_dtype: Static[DType | None] = None

    def init(self, params):
        return ScaleByScionState(zero_count(), zeros_like(params, self.state_dtype))

    def update(self, updates, state, params=None, **extra):
        if params is not None:
            zip_leaves((updates, params), ("updates", "params"))

        def mean(g, d):
            d = (1 - self.momentum) * d + self.momentum * g
            return d, d

        direction, mu = map_leaves(mean, widen_tree(updates, "updates"), state.mu)
        like = updates if params is None else visible(params, updates)
        stacks = Stacks(self.numbers_of_each(like), like)
        parts = stacks.treedef.flatten_up_to(stacks.stack(direction))  # a part may be a tuple of blocks
        norms = self.norm_of_each(like)
        matrices = [d if norm == "spectral" else None for d, norm in zip(parts, norms, strict=True)]
        orthogonal = map_matrices(self._orthogonal, matrices, None, self.distributed)
        nearest = [d if o is None else o for d, o in zip(parts, orthogonal, strict=True)]
        edges = [
            jax.tree.map(lambda d, norm=norm: d if is_nothing(d) else self._edge(d, norm), d)
            for d, norm in zip(nearest, norms, strict=True)
        ]
        edges = stacks.back(stacks.treedef.unflatten(edges))
        updates = as_updates(edges, updates, params)
        return updates, ScaleByScionState(increment(state.count), mu)

    def norm_of_each(self, params: Tree) -> list[str]:
        """Returns the norm of every leaf, None included."""
        if self.norms is None:
            if self.weight_dimension_numbers is None:
                return [BY_PLACE[place.kind] for place in leaf_roles(params, self.matrix_layout)]
            specs = given_specs(self.weight_dimension_numbers, params)
            both = zip(specs, leaf_roles(params, self.matrix_layout), strict=True)
            return [BY_PLACE[place.kind] if s in (None, AUTO) else "spectral" for s, place in both]
        norms = jax.tree.leaves(broadcast_prefix(resolve_labels(self.norms, params), params), is_leaf=is_nothing)
        leaves = jax.tree.leaves(params, is_leaf=is_nothing)
        for path, x, norm in zip(paths(params, is_nothing), leaves, norms, strict=True):
            if is_nothing(x):
                continue
            if norm not in get_args(Norm):
                raise ValueError(f"norms has {norm!r} for params{path}; use one of {', '.join(get_args(Norm))}")
            if norm != "rms" and jnp.ndim(x) < 2:
                raise ValueError(
                    f"norms has {norm!r} for params{path}, which has shape {jnp.shape(x)}; use 'rms' for a leaf with "
                    "fewer than two axes"
                )
        return norms

    def numbers_of_each(self, params: Tree) -> list[Any]:
        """Returns the dimension numbers of every leaf, None for a leaf that uses its last two axes."""
        numbers = AUTO if self.weight_dimension_numbers is None else self.weight_dimension_numbers
        kinds = ("matrix", "head", "embedding")
        read = [numbers_at(place, kinds) for place in leaf_roles(params, self.matrix_layout)]
        specs = read if numbers == AUTO else given_specs(numbers, params)
        return [auto if spec == AUTO else spec for spec, auto in zip(specs, read, strict=True)]

    def doubts(self, params):
        if self.norms is not None:
            return []
        said = given_specs(self.weight_dimension_numbers, params)
        both = zip(said, leaf_roles(params, self.matrix_layout), strict=True)
        return [place.doubt if spec in (None, AUTO) else "" for spec, place in both]

    def _orthogonal(self, d: jax.Array) -> jax.Array:
        return newton_schulz(d, coefficient_rows(self.ns_coeffs, self.ns_steps), self.eps, dtype=self.ns_dtype)

    def _edge(self, d: jax.Array, norm: str) -> Any:
        """Returns the point of the ball farthest along d. For the norm "spectral", d must be orthogonal already."""

        def unit(axis=None):
            return d / (safe_sqrt(jnp.sum(abs_sq(d), axis=axis, keepdims=True)) + self.eps)

        if norm == "rms":
            return self.scale * max(d.size, 1) ** 0.5 * unit()
        inputs, outputs = d.shape[-2:]
        if norm == "spectral":
            return self.scale * (outputs / max(inputs, 1)) ** 0.5 * d
        if norm == "per_input":
            return self.scale * outputs**0.5 * unit(-1)
        if norm == "per_output":
            return self.scale * unit(-2) / max(inputs, 1) ** 0.5
        return self.sign_scale * jnp.sign(d) / max(inputs, 1)


@checked
def scion(
    learning_rate: Rate,
    momentum: Fraction = 0.1,
    norms: Labels | None = None,
    scale: NonNegative = 50.0,
    sign_scale: NonNegative = 3000.0,
    eps: NonNegative = 1e-8,
    *,
    constrained: bool = True,
    ns_coeffs: Coefficients = PRESETS["standard"],
    ns_steps: PositiveInt = 5,
    state_dtype: DType | None = None,
    weight_dimension_numbers: MuonNumbers | None = None,
    matrix_layout: Layout | None = None,
    distributed: Distributed | None = None,
    ns_dtype: DType | None = None,
) -> chain:
    """Scion: w ← (1 − learning_rate) · w − learning_rate · u. See `scale_by_scion` for u.

    The weights stay within the balls, or move into them. constrained=False gives the paper's unconstrained Scion,
    w ← w − learning_rate · u.

    Args:
        learning_rate: a number in [0, 1], a schedule, or a function of the count; the authors' nanoGPT uses 0.00036.
            A step is as long as learning_rate · scale, so that rates are far smaller than Muon's or Adam's. The best
            value for a small model is also good for a large one.

    Pethick et al. 2025, arXiv:2502.07529, algorithms 1 and 2. No leaf needs an auxiliary optimizer; use `partition`
    to give it one nevertheless.

    >>> scion(0.001, constrained=False)
    chain(scale_by_scion(), scale_by_learning_rate(0.001))
    """
    rule = scale_by_scion(
        momentum,
        norms,
        scale,
        sign_scale,
        eps,
        ns_coeffs,
        ns_steps,
        state_dtype,
        weight_dimension_numbers,
        matrix_layout,
        distributed,
        ns_dtype,
    )
    inwards = (add_decayed_weights(1.0),) if constrained else ()
    return chain(rule, *inwards, scale_by_learning_rate(learning_rate))
