"""Counts what a step costs on 8 devices, beside Optax: `python -m benchmarks.scaling`. It times nothing.

Writes the table of docs/scaling.md: for each layout of the params, the bytes of state on a device, the bytes that a
device gets in an update, and its FLOPs.
"""

import math
import os
import re
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import functional_opt as fo
from functional_opt.placement.traffic import collectives

P = PartitionSpec
PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
MATRICES, SIZE = 16, 256
LAYOUTS = {
    "replicated": ((8, 1), P(), P()),
    "FSDP": ((8, 1), P("data"), P("data")),
    "tensor-parallel": ((2, 4), P(None, "model"), P("model")),
    "2-D": ((2, 4), P("data", "model"), P("model")),
}
CONTENDERS = {
    "adamw": (fo.adamw(1e-3), optax.adamw(1e-3)),
    "shard(adamw)": (fo.shard(fo.adamw(1e-3)), None),
    "clip + adamw": (
        fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(1e-3)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    ),
    "shard(clip + adamw)": (fo.shard(fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(1e-3))), None),
    "adafactor": (fo.adafactor(1e-3), optax.adafactor(1e-3)),
    "muon": (fo.muon(1e-3), optax.contrib.muon(1e-3)),
    "muon, local": (fo.muon(1e-3, distributed="local"), None),
    "shard(muon)": (fo.shard(fo.muon(1e-3)), None),
    "dion": (fo.dion(1e-3), None),
    "soap": (fo.soap(1e-3), None),
    "soap, local": (fo.soap(1e-3, distributed="local"), None),
    "shampoo": (fo.shampoo(1e-3, momentum=None), None),
    "psgd_kron": (fo.psgd_kron(1e-3), None),
}


def params_on(layout: str) -> tuple[Any, jax.sharding.Mesh]:
    shape, matrix, vector = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    layers = [
        {
            "kernel": jax.device_put(jnp.ones((SIZE, SIZE)), NamedSharding(mesh, matrix)),
            "bias": jax.device_put(jnp.ones(SIZE), NamedSharding(mesh, vector)),
        }
        for _ in range(MATRICES)
    ]
    return layers, mesh


def cost(tx: Any, layout: str) -> tuple[int, int, float]:
    """Returns the bytes of state on a device, the bytes that it gets, and its FLOPs."""
    params, mesh = params_on(layout)
    with jax.set_mesh(mesh):
        places = fo.state_shardings(tx, params) if isinstance(tx, fo.GradientTransformation) else None
        state = jax.jit(tx.init, out_shardings=places)(params)
        program = jax.jit(tx.update).lower(params, state, params).compile()
    here = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    return here, sum(collectives(program.as_text(), due=False).values()), program.cost_analysis()["flops"]


def main() -> None:
    size = sum(math.prod(x.shape) * 4 for x in jax.tree.leaves(params_on("replicated")[0]))
    rows = [f"| {size / 2**20:.2f} MiB of params | " + " | ".join(LAYOUTS) + " |", "|---|" + "---|" * len(LAYOUTS)]
    for name, (ours, peer) in CONTENDERS.items():
        for who, tx in (("", ours), (" (Optax)", peer)):
            if tx is not None:
                cells = [cost(tx, layout) for layout in LAYOUTS]
                text = [f"{here / 2**20:.2f} / {sent / size:.2f} / {flops / 1e9:.2f}" for here, sent, flops in cells]
                rows.append(f"| `{name}`{who} | " + " | ".join(text) + " |")
                print(rows[-1])
    versions = f"jax {jax.__version__}, Optax {optax.__version__}, {jax.device_count()} CPU devices."
    table = "\n".join(["<!-- benchmarks/scaling.py -->", versions, "", *rows, "<!-- end -->"])
    PAGE.write_text(
        re.sub(r"<!-- benchmarks/scaling.py -->.*?<!-- end -->", lambda _: table, PAGE.read_text(), flags=re.S)
    )


if __name__ == "__main__":
    main()
