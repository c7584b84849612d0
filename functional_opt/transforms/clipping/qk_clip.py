"""qk_clip: bounds attention logits by shrinking the weights that produce them."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from ...core.checks import Static
from ...core.leaves import check_leaves, is_nothing, map_leaves
from ...core.model_trees import named_leaves, names
from ...core.paths import PathRules
from ...core.ranges import Convert, PositiveBound
from ...core.transformation import EmptyState, GradientTransformation, needs_params, transformation


def _powers(name: str, x: Any) -> PathRules:
    rules = x if isinstance(x, PathRules) else PathRules(x)
    for pattern, power in rules.rules:
        if isinstance(power, bool) or not isinstance(power, int | float) or not 0 <= power <= 1:
            raise ValueError(f"{name}[{pattern!r}] must be a number in [0, 1], got {power!r}")
    return rules


@transformation
class qk_clip(GradientTransformation):
    """Shrinks the query and key weights of a head whose logits have grown too large: u = γᵖ·(w + g) − w.

    For each head γ = min(1, threshold / S), where S is its largest logit q·k/√d in the step's batch; p is the leaf's
    power. A logit is a product of a query and a key, so powers that add up to 1 take it back to the threshold. Heads
    below the threshold, and those whose S is not finite, are left as they are. Place the transformation at the end of
    a chain, after the learning rate and the weight decay.

    Args:
        powers: path rules with a power in [0, 1] for each leaf that produces queries or keys, including biases:
            `{"**/query/*": 0.5, "**/key/*": 0.5}`. If all heads share a part of the keys (the rotary part in
            multi-head latent attention), leave that part out and give its queries the power 1.
        threshold: the largest logit allowed, > 0.
        head_axis: the axis of the heads; −2 fits kernels (inputs, heads, head size) and biases (heads, head size).

    `update` takes `max_logits`, a tree as deep as the attention modules: `{"layer_0": {"attention": S}}`. Each S
    has shape (heads,), or () for the largest logit of all heads. If several heads share keys, a leaf has fewer heads
    than S, and the largest S of the heads that share is used.

    Raises ValueError without params or `max_logits`; or, naming the leaf, if no attention in `max_logits` contains
    the leaf or if their numbers of heads do not match.

    Kimi Team 2025, arXiv:2507.20534 (QK-Clip, with Muon: MuonClip).

    >>> tx = qk_clip({"*/query": 0.5, "*/key": 0.5}, threshold=100.0)
    >>> params = {"attention": {"query": jnp.ones((2, 1)), "key": jnp.ones((2, 1)), "value": jnp.ones((2, 1))}}
    >>> still = jax.tree.map(jnp.zeros_like, params)
    >>> u, _ = tx.update(still, tx.init(params), params, max_logits={"attention": jnp.array([400.0, 40.0])})
    >>> u["attention"]["query"].tolist(), u["attention"]["value"].tolist()
    ([[-0.5], [0.0]], [[0.0], [0.0]])
    """

    powers: Static[Annotated[Any, Convert(_powers, "{pattern: power}")]]
    threshold: PositiveBound = 100.0
    head_axis: Static[int] = -2

    def init(self, params):
        return EmptyState()

    def update(self, updates, state, params=None, *, max_logits=None, **extra):
        needs_params(params, self)
        if max_logits is None:
            raise ValueError("qk_clip needs the largest logits: call update(updates, state, params, max_logits=...)")
        check_leaves(updates, params)
        powers = self.powers.resolve(updates, default=0.0)
        attentions = {name: jnp.asarray(x) for name, x in named_leaves(max_logits)}

        def factor(g, name, power):
            alone = is_nothing(g) or not power
            return jnp.ones(()) if alone else self._factor(name, jnp.shape(g), attentions) ** power

        def leaf(g, w, factor):
            return g + (factor - 1) * (w + g) if factor.ndim else g

        places = jax.tree.structure(updates, is_leaf=is_nothing).unflatten(names(updates, is_nothing))
        factors = jax.tree.map(factor, updates, places, powers, is_leaf=is_nothing)
        return map_leaves(leaf, updates, read=(params, factors), params=params, same_shape=False), state

    def touched_leaves(self, params):
        """Returns a mask of the leaves that it changes, for `explain`."""
        return jax.tree.map(lambda power: power > 0, self.powers.resolve(params, default=0.0))

    def _factor(self, name: str, shape: tuple[int, ...], attentions: dict[str, jax.Array]) -> jax.Array:
        """Returns γ of a leaf's heads, with as many axes as the leaf."""
        found = [place for place in attentions if place == "" or f"{name}/".startswith(f"{place}/")]
        if not found:
            raise ValueError(f"qk_clip: {name!r} is part of no attention in max_logits, which has {list(attentions)}")
        s = attentions[max(found, key=len)]
        along = [1] * len(shape)
        if s.ndim:
            if not -len(shape) <= self.head_axis < len(shape) or s.ndim > 1 or s.size % shape[self.head_axis]:
                raise ValueError(
                    f"qk_clip: {name!r} has shape {shape}, whose axis {self.head_axis} is not {s.size} heads, as "
                    f"max_logits has shape {s.shape}; give one logit for all heads, or another head_axis"
                )
            along[self.head_axis] = shape[self.head_axis]
            s = jnp.max(s.reshape(shape[self.head_axis], -1), axis=1)
        too_large = (s > self.threshold) & jnp.isfinite(s)
        return jnp.where(too_large, self.threshold / jnp.where(too_large, s, 1.0), 1.0).reshape(along)
