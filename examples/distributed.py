"""Trains the character model on two processes of four devices each: ZeRO-1, and Muon with owners.

`make distributed` runs it: it starts the processes itself, on the CPU, which talk over the loopback interface. Then
it trains once more in one process, prints both runs side by side, and draws their curves.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

PROCESSES, DEVICES, BATCH = 2, 4, 16
OUT = Path(__file__).parent.parent / "out"


def train(rank: int, processes: int, address: str, steps: int, report: Path) -> None:
    """Trains on the devices of all processes. Each has its rows of every batch; process 0 writes the report."""
    import jax

    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, processes, rank)
    import character_model as model
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import functional_opt as fo
    from functional_opt.placement.traffic import collectives

    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    text, held_out, characters = model.load(96)
    schedule = fo.warmup_cosine_decay_schedule(0.0, 0.01, max(steps // 10, 1), steps)
    tx = fo.shard(fo.muon(schedule, consistent_rms=0.2))

    def step(params, state, windows):
        loss, grads = jax.value_and_grad(model.loss)(params, windows)
        updates, state = tx.update(grads, state, params)
        return fo.apply_updates(params, updates), state, loss

    params = jax.tree.map(lambda x: jax.device_put(x, whole), model.init(1, characters))
    with jax.set_mesh(mesh):
        state = tx.init(params)
        step = jax.jit(step, donate_argnums=(0, 1))
        losses = []
        for windows in model.batches(1, text, BATCH, steps):
            mine = windows.reshape(processes, -1, *windows.shape[1:])[rank]
            params, state, loss = step(params, state, jax.make_array_from_process_local_data(rows, mine))
            losses.append(float(loss))
        held_out_loss = float(jax.jit(model.loss)(params, jax.device_put(held_out, whole)))
    if rank == 0:
        here = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
        in_all = sum(x.nbytes for x in jax.tree.leaves(state))
        windows = jax.ShapeDtypeStruct((BATCH, model.CONTEXT + 1), held_out.dtype, sharding=rows)
        with jax.set_mesh(mesh):
            sent = collectives(step.lower(params, state, windows).compile().as_text())
        report.write_text(
            json.dumps(
                {
                    "losses": losses,
                    "held out": held_out_loss,
                    "state on a device": here,
                    "state in all": in_all,
                    "sent": sent,
                    "compilations": step._cache_size(),
                }
            )
        )


def run(processes: int, devices: int, steps: int) -> dict:
    """Starts the processes, waits for them, and returns the report. Raises RuntimeError if one fails."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
        free.close()
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        report = Path(folder) / "report.json"
        command = [sys.executable, __file__, "--processes", str(processes), "--steps", str(steps)]
        command += ["--address", address, "--report", str(report), "--rank"]
        env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        started = [subprocess.Popen([*command, str(rank)], env=env) for rank in range(processes)]
        try:
            codes = [process.wait(timeout=900) for process in started]
        finally:
            for process in started:
                process.kill()
        if any(codes):
            raise RuntimeError(f"the processes ended with the codes {codes}; their errors are above")
        return json.loads(report.read_text())


def main(steps: int, out: Path | None) -> dict[str, dict]:
    from rich.console import Console
    from rich.table import Table

    names = {f"{n} × {PROCESSES * DEVICES // n} devices": (n, PROCESSES * DEVICES // n) for n in (PROCESSES, 1)}
    reports = {name: run(*how, steps) for name, how in names.items()}
    table = Table("", *names, title=f"Processes × devices: the character model, {steps} steps of {BATCH} windows")
    for row in ("first loss", "last loss", "held out", "state on a device", "state in all", "compilations"):
        cells = []
        for report in reports.values():
            value = report | {"first loss": report["losses"][0], "last loss": report["losses"][-1]}
            cells.append(f"{value[row]:.6f}" if isinstance(value[row], float) else f"{value[row]:,}")
        table.add_row(row, *cells)
    table.add_row(
        "a device gets in a step",
        *("\n".join(f"{n:,} B by {kind}" for kind, n in r["sent"].items()) or "nothing" for r in reports.values()),
    )
    Console().print(table)
    if out is not None:
        draw(reports, out)
    return reports


def draw(reports: dict[str, dict], out: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for style, (name, report) in zip(("-", "--"), reports.items(), strict=True):
        axes.plot(report["losses"], style, label=name)
    axes.set(xlabel="step", ylabel="training loss, nats per character")
    axes.legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    plt.close(figure)
    print(f"curves: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rank", type=int, help="only for the processes that this script starts")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--address")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    if args.rank is None:
        main(args.steps, OUT / "distributed.png")
    else:
        train(args.rank, args.processes, args.address, args.steps, args.report)
