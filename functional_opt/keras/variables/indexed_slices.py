"""IndexedSlices: a sparse gradient, given by its nonzero rows."""

from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_pytree_with_keys_class
class IndexedSlices:
    """Rows of an array of `dense_shape`: row `indices[i]` is `values[i]`. Rows with the same index are summed.

    Args:
        values: shape (n, ...), one row for each index.
        indices: integers, shape (n,), in [0, dense_shape[0]).
        dense_shape: the shape of the dense array; may be omitted where a variable supplies it.

    Raises ValueError if the numbers of rows and indices differ, TypeError if the indices are not integers.

    >>> g = IndexedSlices(jnp.array([[1.0], [2.0], [3.0]]), jnp.array([0, 2, 0]), (3, 1))
    >>> g.dense().ravel().tolist()
    [4.0, 0.0, 2.0]
    """

    def __init__(self, values: Any, indices: Any, dense_shape: tuple[int, ...] | None = None):
        self.values, self.indices = jnp.asarray(values), jnp.asarray(indices)
        if self.indices.ndim != 1 or self.values.ndim < 1 or len(self.values) != len(self.indices):
            raise ValueError(
                f"values of shape {self.values.shape} need indices of shape {self.values.shape[:1]}, "
                f"got {self.indices.shape}"
            )
        if not jnp.issubdtype(self.indices.dtype, jnp.integer):
            raise TypeError(f"indices must be whole numbers, got dtype {self.indices.dtype}")
        self.dense_shape = None if dense_shape is None else tuple(int(n) for n in dense_shape)

    @property
    def shape(self) -> tuple[int, ...] | None:
        return self.dense_shape

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    def with_values(self, values: jax.Array) -> "IndexedSlices":
        """Returns the same rows with other values."""
        return IndexedSlices(values, self.indices, self.dense_shape)

    def dense(self, shape: tuple[int, ...] | None = None) -> jax.Array:
        """Returns the dense array, of the given shape or of `dense_shape`."""
        shape = self.dense_shape if shape is None else shape
        if shape is None:
            raise ValueError("these IndexedSlices have no dense_shape, so they cannot be made dense")
        return jnp.zeros(shape, self.dtype).at[self.indices].add(self.values)

    def summed(self, rows: int) -> tuple[jax.Array, jax.Array]:
        """Sums rows with the same index. Returns `(indices, values)`, sorted by index.

        Both keep their length: entries left over have the index `rows`.
        """
        n = len(self.indices)
        unique, place = jnp.unique(self.indices, size=n, fill_value=rows, return_inverse=True)
        return unique, jnp.zeros_like(self.values).at[place].add(self.values)

    def __neg__(self) -> "IndexedSlices":
        return self.with_values(-self.values)

    def __repr__(self):
        return f"IndexedSlices(values of shape {self.values.shape}, dense_shape={self.dense_shape})"

    def tree_flatten_with_keys(self):
        keys = jax.tree_util.GetAttrKey("values"), jax.tree_util.GetAttrKey("indices")
        return list(zip(keys, (self.values, self.indices), strict=True)), self.dense_shape

    @classmethod
    def tree_unflatten(cls, dense_shape, children):
        slices = object.__new__(cls)
        (slices.values, slices.indices), slices.dense_shape = children, dense_shape
        return slices
