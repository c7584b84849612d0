"""What hypothesis draws: leaves of a few shapes, so that little is compiled, and trees of them."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

FLOATS = ("float16", "bfloat16", "float32")


def leaves(limit: float = 100.0):
    """float32 arrays of a few shapes, elements up to `limit` in size, none so small that squares vanish."""
    numbers = st.integers(-1000, 1000).map(lambda n: np.float32(n * limit / 1000))
    return st.one_of(*(arrays(np.float32, shape, elements=numbers) for shape in [(), (3,), (2, 3)]))


def trees(limit: float = 100.0, min_size: int = 0):
    """Dicts of leaves, one level or two deep."""
    flat = st.dictionaries(st.sampled_from("abc"), leaves(limit), min_size=min_size)
    return st.one_of(flat, st.dictionaries(st.sampled_from("xy"), flat, min_size=min_size))
