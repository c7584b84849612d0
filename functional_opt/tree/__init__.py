"""Functions on trees, under the names of `optax.tree`: `tree.add(x, y)`, `tree.norm(x)`, `tree.get(state, "mu")`.

Leaves keep their dtypes; norms and sums of 16-bit leaves are computed in float32.
"""

from ..core.queries import NamedTupleKey as NamedTupleKey
from ..core.queries import get as get
from ..core.queries import get_all_with_path as get_all_with_path
from ..core.queries import set as set
from .arithmetic import add as add
from .arithmetic import add_scale as add_scale
from .arithmetic import allclose as allclose
from .arithmetic import clip as clip
from .arithmetic import conj as conj
from .arithmetic import div as div
from .arithmetic import max as max
from .arithmetic import min as min
from .arithmetic import mul as mul
from .arithmetic import norm as norm
from .arithmetic import real as real
from .arithmetic import scale as scale
from .arithmetic import size as size
from .arithmetic import sub as sub
from .arithmetic import sum as sum
from .arithmetic import vdot as vdot
from .arithmetic import where as where
from .create import batch_shape as batch_shape
from .create import cast as cast
from .create import cast_like as cast_like
from .create import dtype as dtype
from .create import full_like as full_like
from .create import ones_like as ones_like
from .create import random_like as random_like
from .create import split_key_like as split_key_like
from .create import unwrap_random_key_data as unwrap_random_key_data
from .create import zeros_like as zeros_like
from .moments import bias_correction as bias_correction
from .moments import update_infinity_moment as update_infinity_moment
from .moments import update_moment as update_moment
from .moments import update_moment_per_elem_norm as update_moment_per_elem_norm
from .params import map_params as map_params
