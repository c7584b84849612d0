"""Checkpoints in orbax's folders."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import functional_opt as fo
from functional_opt.interop import orbax

from ..helpers import make_params, structs
from ..interop.helpers import advance
from .test_arrays import assert_same_bits

ocp = pytest.importorskip("orbax.checkpoint")
ROOT = pathlib.Path(__file__).parents[2]
DAMAGED = int(os.environ.get("FUNCTIONAL_OPT_DAMAGED_FOLDERS", "20"))


def trained(steps=2):
    tx, params = fo.adamw(fo.linear_schedule(0.1, 0.0, 10)), make_params()
    return tx, *advance(tx, params, tx.init(params), range(steps))


def test_round_trip(tmp_path):
    tx, params, state = trained()
    orbax.save(tmp_path / "a", tx, params, state, extra={"epoch": 3})
    same, *both, extra = orbax.restore(str(tmp_path / "a"))
    assert same == tx and extra == {"epoch": 3}
    assert_same_bits(both, [params, state])
    assert_same_bits(orbax.restore(tmp_path / "a", tx, structs(params))[1:3], (params, state))
    with pytest.raises(ValueError, match="extra must be"):
        orbax.save(tmp_path / "b", tx, params, state, extra=(1,))
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        orbax.restore(tmp_path / "b")
    with pytest.raises(ValueError, match=r"'#0/count', but tx.init\(params\) makes no such slot"):
        orbax.restore(tmp_path / "a", tx=fo.trace(0.9))
    longer = fo.chain(fo.clip_by_global_norm(1.0), tx)
    assert_same_bits(orbax.restore(tmp_path / "a", longer)[2][1], state)


def test_kinds_of_arrays(tmp_path):
    names = "bool int8 uint16 int4 float16 bfloat16 float8_e4m3fn complex64".split()
    params = {name: jnp.arange(4).astype(name) for name in names}
    params |= {"empty": jnp.ones((0, 3)), "key": jax.random.key(1), "a": {"b": jnp.ones(1)}, "a/b": jnp.zeros(1)}
    orbax.save(tmp_path / "a", fo.chain(), params, ())
    assert_same_bits(orbax.restore(tmp_path / "a")[1], params)
    orbax.save(tmp_path / "b", fo.chain(), {"empty": jnp.ones((0, 3))}, ())
    assert_same_bits(orbax.restore(tmp_path / "b")[1], {"empty": jnp.ones((0, 3))})


def test_shardings(tmp_path):
    """Saved split over four devices, restored over two axes of two, on two devices and on one."""
    tx, params, state = trained()

    def split(mesh, *axes):
        return lambda x: NamedSharding(mesh, PartitionSpec(*axes[: jnp.ndim(x)]))

    of_four = jax.tree.map(split(jax.make_mesh((4,), ("x",)), "x"), params)
    spread = jax.device_put(params, of_four)
    orbax.save(tmp_path / "a", tx, spread, state[:-1] + (jax.device_put(state[-1], jax.devices()[0]),))
    two_by_two = jax.make_mesh((2, 2), ("x", "y"))
    of_two = jax.sharding.Mesh(jax.devices()[:2], ("x",))
    for sharding in (split(two_by_two, "x", "y"), split(of_two, "x"), split(of_four["scale"].mesh)):
        like = jax.tree.map(lambda x, to=sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to(x)), params)
        _, *both, _ = orbax.restore(tmp_path / "a", params=like)
        assert_same_bits(both, [params, state])
        kernel = like["dense"]["kernel"].sharding
        assert both[0]["dense"]["kernel"].sharding == kernel and both[1][0].mu["dense"]["kernel"].sharding == kernel
    assert_same_bits(orbax.restore(tmp_path / "a")[1:3], (params, state))


def test_checkpoint_manager(tmp_path):
    """Asynchronous, with rotation; the buffers may be reused as soon as `save` returns."""
    tx, params, state = trained()
    grads = jax.tree.map(jnp.ones_like, params)

    def once(params, state):
        updates, state = tx.update(grads, state, params)
        return fo.apply_updates(params, updates), state

    step = jax.jit(once, donate_argnums=(0, 1))
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
            orbax.restore_step(manager)
        for i in range(4):
            manager.save(i, args=orbax.save_args(tx, params, state, extra=i))
            if i < 3:
                params, state = step(params, state)
        manager.wait_until_finished()
        assert manager.all_steps() == [2, 3]
        same, *both, extra = orbax.restore_step(manager)
        assert same == tx and extra == 3
        assert_same_bits(both, [params, state])
        assert orbax.restore_step(manager, 2, params=structs(params))[-1] == 2
    assert_same_bits(orbax.restore(tmp_path / "3")[1:3], (params, state))


def test_folders_of_others_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "other", make_params())
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "json", args=ocp.args.Composite(manifest=ocp.args.JsonSave({"a": 1})))
    for name in ("empty", "other", "json"):
        with pytest.raises(ValueError, match="is not a"):
            orbax.restore(tmp_path / name)


def test_damaged_folders(tmp_path):
    """In a process of its own, as orbax's threads still read when its error has been raised."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.checkpoint.damaged_folders", tmp_path / "a", str(DAMAGED)]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
