"""On automatic axes, where types do not say where arrays lie, a step leaves updates and slots where they were."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import functional_opt as fo

P = PartitionSpec
SHAPES = {"a": (32, 16), "b": (16,), "s": (3, 16, 24)}
LAYOUTS = {
    "FSDP": ((4, 1), {"a": P("data"), "s": P(None, "data")}),
    "TP": ((2, 2), {"a": P("model"), "s": P(None, None, "model")}),
}
CHAINS = {  # with slots that lie otherwise than the leaves they are computed from
    "adamw": fo.adamw(0.1),
    "adafactor": fo.adafactor(0.1, min_dim_size_to_factor=8),
    "flatten": fo.flatten(fo.adam(0.1)),
    "galore": fo.galore(0.1, rank=4),
    "muon": fo.muon(0.1),
    "psgd_kron": fo.psgd_kron(0.1),
    "quantize_state": fo.quantize_state(fo.adam(0.1), block_size=512, min_size=0),
    "quantize_state, 4 bits": fo.quantize_state(fo.adam(0.1), bits=4, block_size=512, min_size=0),
    "shampoo": fo.shampoo(0.1),
    "soap": fo.soap(0.1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CHAINS)
def test_placements_are_kept(name, layout):
    (shape, specs), tx = LAYOUTS[layout], CHAINS[name]
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    params = {
        key: jax.device_put(np.ones(own, "float32"), NamedSharding(mesh, specs.get(key, P())))
        for key, own in SHAPES.items()
    }
    shardings = fo.state_shardings(tx, params)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    after = jax.jit(tx.update).lower(params, state, params).compile().output_shardings
    before = jax.tree.map(lambda x: x.sharding, params), shardings
    for (path, x), new, old in zip(
        jax.tree_util.tree_leaves_with_path((params, state)), *map(jax.tree.leaves, (after, before)), strict=True
    ):
        assert new.is_equivalent_to(old, x.ndim), jax.tree_util.keystr(path)
