"""Trains on eight devices, saves, and goes on with one, two, four and eight: `python -m tests.checkpoint.elastic`."""

import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import functional_opt as fo
from functional_opt.interop import orbax
from functional_opt.interop.safetensors import load, save

from .test_arrays import assert_same_bits

TXS = {
    "adamw": fo.adamw(fo.linear_schedule(0.1, 0.0, 10)),
    "quantized": fo.quantize_state(fo.sgd(0.1, momentum=0.9), min_size=0, block_size=2),
    "ema": fo.chain(fo.sgd(0.1, momentum=0.9), fo.params_ema(0.9)),
    "accumulation": fo.MultiSteps(fo.adam(0.1), 3).gradient_transformation(),
}


def shardings(devices, params):
    """Rows of every leaf over the first of all devices."""
    mesh = Mesh(jax.devices()[:devices], ("data",))
    return jax.tree.map(lambda x: NamedSharding(mesh, P("data") if x.ndim else P()), params)


def grads_at(i, params):
    return jax.tree.map(lambda x: jnp.sin(i + jnp.arange(x.size, dtype="float32")).reshape(x.shape), params)


def steps(tx, params, state, numbers):
    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return fo.apply_updates(params, updates), state

    for i in numbers:
        grads = jax.tree.map(lambda g, x: jax.device_put(g, x.sharding), grads_at(i, params), params)
        params, state = step(params, state, grads)
    return params, state


def main(folder):
    assert jax.device_count() == 8
    start = {"kernel": jnp.ones((16, 4)), "bias": jnp.zeros(8), "scale": jnp.ones(())}
    for name, tx in TXS.items():
        params = jax.device_put(start, shardings(8, start))
        params, state = steps(tx, params, jax.jit(tx.init)(params), range(4))
        assert len(params["kernel"].sharding.device_set) == 8
        expected = steps(tx, params, state, range(4, 6))
        save(folder / f"{name}.file", tx, params, state)
        orbax.save(folder / name, tx, params, state)
        for devices in (1, 2, 4, 8):
            to = shardings(devices, start)
            like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), start, to)
            for read, path in ((load, folder / f"{name}.file"), (orbax.restore, folder / name)):
                same, *back, _ = read(path, params=like)
                assert same == tx
                assert_same_bits(back, [params, state])
                assert jax.tree.map(lambda x: x.sharding, back[0]) == to
                further = steps(tx, *back, range(4, 6))
                if devices == 8:
                    assert_same_bits(further, expected)
                else:  # XLA may compile parts of other sizes to fused multiply-adds in other places
                    chex.assert_trees_all_close(further, expected, rtol=1e-5, atol=1e-6)
    print("the same bits")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
