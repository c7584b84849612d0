"""Checkpoints in one file of the safetensors format: no pickle, and the manifest in the file's metadata.

`functional_opt.checkpoint.files` writes and reads the format, so the `safetensors` library is not needed; it reads
these files, as every program for safetensors does.
"""

import os
from typing import Any

from ..checkpoint.arrays import from_arrays, to_arrays
from ..checkpoint.files import read, write
from ..core.leaves import Tree


def save(path: str | os.PathLike, tx: Any, params: Tree, state: Any, extra: Any = None) -> None:
    """Saves a transformation, params and its state to one file.

    The file is written beside its place as `path.partial`, synced to the disk and renamed, so that `path` is always
    a complete checkpoint, the old one or the new one.

    Args:
        path: the file; its folder must exist.
        tx, params, state: see `to_arrays`, also for the names of the arrays.
        extra: anything plain JSON, such as an epoch.

    Raises TypeError or ValueError, with an old file as it was, for what `to_arrays` refuses, for an `extra` that is
    not JSON, and for an array of which this process has only a part.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> from functional_opt import adam
    >>> tx, params = adam(1e-3), {"w": jnp.ones(2)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/run.safetensors", tx, params, tx.init(params), extra={"epoch": 3})
    ...     same, params, state, extra = load(f"{folder}/run.safetensors")
    >>> same == tx, params["w"].tolist(), int(state[0].count), extra
    (True, [1.0, 1.0], 0, {'epoch': 3})
    """
    write(path, *to_arrays(tx, params, state), extra)


def load(path: str | os.PathLike, tx: Any = None, params: Tree = None) -> tuple[Any, Tree, Any, Any]:
    """Returns the `(tx, params, state, extra)` that `save` saved, with the same bits.

    Args:
        path: the file.
        tx, params: see `from_arrays`: the transformation, unless it is the one saved, and params that say containers
            and shardings.

    Raises ValueError, before anything is used, for a file that is truncated, damaged or of another program, naming
    the array, and for a `tx` or params that do not fit.
    """
    arrays, manifest, extra = read(path)
    return *from_arrays(arrays, manifest, tx, params), extra
