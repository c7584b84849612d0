"""The arguments of a compiled function: which are inputs of its program, and which are fixed for a trace."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..variables.recording import Cell


class Arguments:
    """Arguments of a call: arrays and numbers are inputs of the program; all else is fixed for a trace."""

    def __init__(self, args: tuple, kwargs: dict[str, Any]):
        leaves, self.treedef = jax.tree.flatten((args, kwargs), is_leaf=lambda x: isinstance(x, Cell))
        self.is_array = tuple(_is_array(x) for x in leaves)
        self.arrays = [x for x, dynamic in zip(leaves, self.is_array, strict=True) if dynamic]
        self.fixed = tuple(x for x, dynamic in zip(leaves, self.is_array, strict=True) if not dynamic)

    def signature(self) -> Any:
        """Returns the key of a trace: structure, shapes and dtypes, and the fixed arguments.

        Raises TypeError for a fixed argument that is not hashable.
        """
        shapes = tuple((jnp.shape(x), jnp.result_type(x)) for x in self.arrays)
        fixed = tuple(id(x) if isinstance(x, Cell) else x for x in self.fixed)
        for x in fixed:
            try:
                hash(x)
            except TypeError:
                raise TypeError(
                    f"arguments must be arrays, numbers, variables or hashable objects, got {x!r}"
                ) from None
        return self.treedef, self.is_array, shapes, fixed, jax.config.read("jax_enable_x64")

    def rebuild(self) -> Callable[[Sequence[Any]], tuple[tuple, dict[str, Any]]]:
        """Returns a function that puts other arrays in the place of these, and keeps none of these alive."""
        treedef, is_array, fixed = self.treedef, self.is_array, self.fixed

        def rebuilt(arrays: Sequence[Any]) -> tuple[tuple, dict[str, Any]]:
            ours, others = iter(arrays), iter(fixed)
            return treedef.unflatten([next(ours) if dynamic else next(others) for dynamic in is_array])

        return rebuilt


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic | int | float | complex) and not isinstance(x, bool)
