"""Where a leaf stands in a model, by its path and shape: what Muon and its kin take, and what they leave to Adam."""

from typing import Any

import jax
import jax.numpy as jnp

from ..leaves import Tree, is_nothing
from ..paths import matches

HEADS = ("head/**", "*_head/**", "*[uU]nembed*/**", "*logits*/**", "classifier/**")
EMBEDDINGS = ("*[eE]mbed*/**", "emb/**", "*_emb/**", "wte/**", "wpe/**")


def places(params: Tree) -> list[tuple[str, str]]:
    """The place of every leaf, None counted as one, and what says so.

    "vector" (fewer than two axes), "head" (the output layer) or "embedding" by path, "matrix" (two axes) or
    "stack" (more).

    >>> places({"bias": jnp.ones(2), "lm_head": jnp.ones((2, 9)), "q": jnp.ones((2, 2))})
    [('vector', '1-d'), ('head', "path '*_head/**'"), ('matrix', '2-d')]
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_nothing)
    return [_place(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in leaves]


def _place(path: str, x: Any) -> tuple[str, str]:
    axes = 0 if is_nothing(x) else jnp.ndim(x)
    shape = f"{axes}-d"
    if axes < 2:
        return "vector", shape
    for place, patterns in (("head", HEADS), ("embedding", EMBEDDINGS)):
        for pattern in patterns:
            if matches(pattern, path):
                return place, f"path {pattern!r}"
    return ("matrix" if axes == 2 else "stack"), shape
