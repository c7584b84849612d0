"""Clips of gradients that run before the compiled step, or together with code of the user's."""

from collections.abc import Callable, Sequence
from typing import Any

from ...core.transformation import EmptyState, GradientTransformation
from ...transforms.clipping.clip import clip, clip_by_global_norm, clip_by_norm
from ...transforms.combining.chain import chain
from ..variables.indexed_slices import IndexedSlices

Clips = list[tuple[Callable[[Any], GradientTransformation], Any]]
"""The clips that are set, with their bounds, in the order of Keras."""


def clips_with(clipvalue: Any, clipnorm: Any, global_clipnorm: Any) -> Clips:
    """Returns the clips with these bounds, but those of None."""
    clips = [(clip, clipvalue), (clip_by_norm, clipnorm), (clip_by_global_norm, global_clipnorm)]
    return [(make, bound) for make, bound in clips if bound is not None]


def as_chain(clips: Clips) -> chain:
    """Returns the clips as one transformation."""
    return chain(*(make(bound) for make, bound in clips))


def clipped(grads: Sequence[Any], clips: Clips) -> list[Any]:
    """Returns clipped gradients. Of sparse ones, the values are clipped before duplicate rows are summed."""
    plain, tx = [g.values if isinstance(g, IndexedSlices) else g for g in grads], as_chain(clips)
    new, _ = tx.update(plain, tx.init(plain))
    return [g.with_values(x) if isinstance(g, IndexedSlices) else x for g, x in zip(grads, new, strict=True)]


def clipped_together(grads: Sequence[Any], bound: Any) -> list[Any]:
    """Clips gradients by their joint norm."""
    values = [g.values if isinstance(g, IndexedSlices) else g for g in grads]
    new, _ = clip_by_global_norm(bound).update(values, EmptyState())
    return [g.with_values(x) if isinstance(g, IndexedSlices) else x for g, x in zip(grads, new, strict=True)]
