"""DType: NumPy's dtype with TensorFlow's `base_dtype`."""

import functools
from typing import Any

import numpy as np


class DType:
    """A dtype of a variable. NumPy and JAX take it as a dtype; it equals that dtype and hashes as it does.

    >>> DType(np.dtype("float32")).base_dtype == np.float32
    True
    """

    def __init__(self, dtype: Any):
        self.dtype = np.dtype(dtype)

    @property
    def __numpy_dtype__(self) -> np.dtype:
        return self.dtype

    @property
    def base_dtype(self) -> "DType":
        """The dtype itself: TensorFlow has dtypes of references, whose base is that of the value."""
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dtype":
            raise AttributeError(name)
        return getattr(self.dtype, name)

    def __eq__(self, other: Any) -> bool:
        return self.dtype == (other.dtype if isinstance(other, DType) else other)

    def __hash__(self) -> int:
        return hash(self.dtype)

    def __repr__(self) -> str:
        return repr(self.dtype)

    def __str__(self) -> str:
        return str(self.dtype)


of = functools.lru_cache(maxsize=None)(DType)
"""Returns the one `DType` of a dtype."""
