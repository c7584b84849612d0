"""Other numbers of devices, and the steps of `make_train_step`."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import functional_opt as fo
from functional_opt.interop.safetensors import load, save

from .test_arrays import assert_same_bits

ROOT = Path(__file__).parents[2]


def test_from_eight_devices_to_one_two_and_four(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    flags = " ".join(f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f)
    env = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "tests.checkpoint.elastic", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True)
    assert run.stdout == "the same bits\n", run.stderr


def loss_fn(params, x):
    return jnp.mean((x @ params["w"] + params["b"].astype("float32")) ** 2)


CHAINS = {
    "adamw": fo.adamw(fo.cosine_decay_schedule(0.1, 10)),
    "window": fo.MultiSteps(fo.adam(0.1), 3).gradient_transformation(),
    "loss scale": fo.dynamic_loss_scale(fo.adam(0.1), growth_interval=2),
    "average": fo.chain(fo.adam(0.1), fo.params_ema(0.9)),
    "schedule-free": fo.schedule_free_adamw(0.1, warmup_steps=3),
    "8 bits": fo.quantize_state(fo.adam(0.1), min_size=0),
    "stochastic rounding": fo.stochastic_round(fo.adam(0.1)),
    "master weights": fo.master_weights(fo.adam(0.1), "int16"),
    "noise": fo.chain(fo.add_noise(0.1, 0.5, seed=3), fo.sgd(0.1)),
    "metrics": fo.with_metrics(fo.groups(fo.adamw(0.1), {"b": {"weight_decay": 0.0}})),
}


@pytest.mark.parametrize("before", [3, 4, 5])
@pytest.mark.parametrize("name", CHAINS)
def test_make_train_step(tmp_path, name, before):
    """With micro-batches, and with the window of `MultiSteps` at its end and in its middle."""
    tx, batch = CHAINS[name], jnp.linspace(-1, 1, 24).reshape(4, 6)
    step = fo.make_train_step(loss_fn, accumulate=2)
    short = "bfloat16" if name in ("stochastic rounding", "master weights") else "float32"
    params = {"w": jnp.ones((6, 3)), "b": jnp.ones(3, short)}
    state = tx.init(params)
    for i in range(before + 3):
        if i == before:
            save(tmp_path / "a", tx, params, state, extra=i)
        params, state, _ = step(tx, params, state, batch + i)
    tx, *half, start = load(tmp_path / "a")
    for i in range(start, before + 3):
        *half, _ = step(tx, *half, batch + i)
    assert_same_bits(half, [params, state])
    assert jax.tree.structure(tx) == jax.tree.structure(CHAINS[name])


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("name", ["adafactor", "shard"])
def test_slots_lie_where_state_shardings_says(tmp_path, name, devices):
    tx = {"adafactor": fo.adafactor(0.1, min_dim_size_to_factor=8), "shard": fo.shard(fo.adam(0.1))}[name]
    meshes = [jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,)) for n in (4, devices)]
    spec = P("data") if name == "adafactor" else P()
    params, other = ({"w": jax.device_put(jnp.ones((64, 32)), NamedSharding(mesh, spec))} for mesh in meshes)
    state = jax.jit(tx.init, out_shardings=fo.state_shardings(tx, params))(params)
    save(tmp_path / "a", tx, params, state)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), other)
    _, _, restored, _ = load(tmp_path / "a", params=abstract)
    expected = fo.state_shardings(tx, abstract)
    for x, sharding in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(restored))
    assert_same_bits(restored, state)
