"""Checkpoints in orbax's folders: sharded arrays, written by every host its own part, and the manifest beside them.

`save` and `restore` are for one checkpoint. For rotation and asynchronous saving, give orbax's `CheckpointManager`
what `save_args` returns, and read a step with `restore_step`::

    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=3)) as manager:
        manager.save(step, args=orbax.save_args(tx, params, state, extra={"epoch": 3}))
        tx, params, state, extra = orbax.restore_step(manager, params=params)
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..checkpoint.arrays import to_arrays
from ..checkpoint.plan import Plan
from ..checkpoint.restored import restored
from ..checkpoint.text import plain_json
from ..core.leaves import Tree

ARRAYS, MANIFEST = "arrays", "manifest"
"""The names of the two items of a checkpoint."""


def save(path: str | os.PathLike, tx: Any, params: Tree, state: Any, extra: Any = None) -> None:
    """Saves a transformation, params and its state to a new folder, and returns when all is written.

    Args:
        path: the folder, which must not exist. With several hosts, one that all of them see.
        tx, params, state: see `to_arrays`. Each host writes its part of arrays that are spread over several.
        extra: anything plain JSON, such as an epoch.

    Raises TypeError or ValueError for what `to_arrays` refuses and for an `extra` that is not JSON.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> from functional_opt import adam
    >>> tx, params = adam(1e-3), {"w": jnp.ones(2)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/run", tx, params, tx.init(params), extra={"epoch": 3})
    ...     same, params, state, extra = restore(f"{folder}/run")
    >>> same == tx, params["w"].tolist(), int(state[0].count), extra
    (True, [1.0, 1.0], 0, {'epoch': 3})
    """
    args = save_args(tx, params, state, extra)
    with _checkpointer() as checkpointer:
        checkpointer.save(os.path.abspath(path), args=args)


def restore(path: str | os.PathLike, tx: Any = None, params: Tree = None) -> tuple[Any, Tree, Any, Any]:
    """Returns the `(tx, params, state, extra)` that `save` saved, with the same bits.

    Args:
        path: the folder.
        tx, params: see `from_arrays`. Each host reads its part of arrays that the shardings of the params split.

    Raises ValueError for a checkpoint that is damaged, incomplete or of another program, and for a `tx` or params
    that do not fit.
    """
    if not os.path.isdir(path):
        raise FileNotFoundError(f"there is no checkpoint folder {os.fspath(path)!r}")
    with _checkpointer() as checkpointer:
        read = functools.partial(checkpointer.restore, os.path.abspath(path))
        return _restored(os.fspath(path), read, tx, params)


def save_args(tx: Any, params: Tree, state: Any, extra: Any = None) -> Any:
    """Returns the arguments with which a `CheckpointManager` saves the same checkpoint as `save`.

    The manager copies the arrays to the host before its `save` returns, so a step may then reuse their buffers.
    """
    import orbax.checkpoint as ocp

    arrays, manifest = to_arrays(tx, params, state)
    filled = {name: x for name, x in arrays.items() if np.size(x)}  # orbax refuses arrays without elements
    said = {"manifest": manifest, "extra": plain_json(extra)}
    items = {ARRAYS: ocp.args.StandardSave(filled)} if filled else {}
    return ocp.args.Composite(**items, **{MANIFEST: ocp.args.JsonSave(said)})


def restore_step(
    manager: Any, step: int | None = None, tx: Any = None, params: Tree = None
) -> tuple[Any, Tree, Any, Any]:
    """Returns what a `CheckpointManager` saved with `save_args`, like `restore`.

    Args:
        manager: the `CheckpointManager`.
        step: which of its steps; None for the latest.
        tx, params: see `from_arrays`.

    Raises FileNotFoundError if the manager has no step, and ValueError as `restore` does.
    """
    step = manager.latest_step() if step is None else step
    if step is None:
        raise FileNotFoundError(f"there is no checkpoint in {manager.directory}")
    return _restored(f"step {step}", functools.partial(manager.restore, step), tx, params)


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp

    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


def _restored(what: str, read: Callable[..., Any], tx: Any, params: Tree) -> tuple[Any, Tree, Any, Any]:
    import orbax.checkpoint as ocp

    said = _item(what, read, MANIFEST, ocp.args.JsonRestore())
    if not isinstance(said, dict) or said.keys() != {"manifest", "extra"}:
        raise ValueError(f"{what!r} is not a checkpoint of functional_opt: it has no manifest")
    read_arrays = functools.partial(_arrays, what, read)
    return *restored(said["manifest"], tx, params, read_arrays), said["extra"]


def _arrays(what: str, read: Callable[..., Any], plan: Plan) -> dict[str, Any]:
    """Returns the arrays of a checkpoint, each where the plan says."""
    import orbax.checkpoint as ocp

    shardings = {name: None if plan.facts[name].form.key else x for name, x in plan.shardings().items()}
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    forms = {name: fact.form for name, fact in plan.facts.items()}
    like = {
        name: jax.ShapeDtypeStruct(form.shape, form.dtype, sharding=shardings[name] or here)
        for name, form in forms.items()
        if 0 not in form.shape
    }
    arrays = _item(what, read, ARRAYS, ocp.args.StandardRestore(like)) if like else {}
    # an array that may lie anywhere is not to be bound to the device it was read to
    free = {name: np.asarray(x) for name, x in arrays.items() if shardings.get(name) is None}
    empty = {name: np.zeros(form.shape, form.dtype) for name, form in forms.items() if 0 in form.shape}
    return {**arrays, **free, **empty}


def _item(what: str, read: Callable[..., Any], name: str, args: Any) -> Any:
    import orbax.checkpoint as ocp

    try:
        return read(args=ocp.args.Composite(**{name: args}))[name]
    except Exception as e:  # of orbax, tensorstore, JSON or the file system
        raise ValueError(f"{what!r} is not a complete checkpoint: its {name} cannot be read: {str(e):.300}") from e
