"""Times steps on a GPU against Optax and torch: `python -m benchmarks.gpu`; `--small` tries it on a CPU.

Takes 8 minutes. What has not started by then is left out, and the table says so.
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves memory for torch

import jax
import optax
import optax.contrib
import torch

import functional_opt
from functional_opt import muon, quantize_state
from functional_opt.transforms.matrices import newton_schulz

from .harness import interleave, milliseconds, write_table
from .shapes import Shapes, transformer
from .step import TORCH, chains, contender, fused

BYTES = {"adam": 28, "clip + adamw": 32, "lion": 20}
"""The least bytes a parameter that a step reads and writes."""


class Limits(NamedTuple):
    """Rates that the device reaches: `memory` in bytes a second, the products in operations a second."""

    memory: float
    tf32: float
    half: float


class Row(NamedTuple):
    """One line of the table: `contenders` makes what runs `steps` steps; `least`: seconds a step at the limits."""

    work: str
    contenders: Callable[[], dict[str, Callable[[], None]]]
    steps: int
    least: float


def measured_limits(n: int, steps: int) -> Limits:
    """Returns the rates of a copy and of products of n × n matrices."""
    seconds = {}
    x = jax.random.normal(jax.random.key(0), (2 * n, 2 * n))
    for name, dtype in (("memory", "float32"), ("tf32", "float32"), ("half", "float16")):
        y = x if name == "memory" else x[:n, :n].astype(dtype)
        fn = jax.jit(lambda y: y + 1) if name == "memory" else jax.jit(lambda y: y @ y)
        seconds[name] = interleave({name: queued(fn, y, steps)}, 5, f"limit: {name}")[name] / steps
    return Limits(8 * x.size / seconds["memory"], 2 * n**3 / seconds["tf32"], 2 * n**3 / seconds["half"])


def queued(fn: Callable, x: jax.Array, steps: int) -> Callable[[], None]:
    """Returns a function that calls `fn(x)` some times and waits for the last."""

    def run():
        for _ in range(steps - 1):
            fn(x)
        jax.block_until_ready(fn(x))

    return run


def elementwise(size: str, shapes: Shapes, limits: Limits, steps: int, device: str) -> list[Row]:
    """Returns the rows of Adam, clip + AdamW and Lion."""

    def contenders(name: str) -> Callable[[], dict]:
        return lambda: {
            "ours": contender(functional_opt, chains(functional_opt)[name], shapes, steps=steps),
            "optax": contender(optax, chains(optax)[name], shapes, steps=steps),
            **({"torch": fused(*TORCH[name], shapes, steps, device)} if name in TORCH else {}),
        }

    elements = sum(map(math.prod, shapes.values()))
    return [
        Row(f"{name}, {size}", contenders(name), steps, each * elements / limits.memory)
        for name, each in BYTES.items()
    ]


def coded(shapes: Shapes, limits: Limits, steps: int) -> list[Row]:
    """Returns the rows of Adam with a state of 16, 8 and 4 bits."""
    elements = sum(map(math.prod, shapes.values()))
    txs = {
        "16 bits": (functional_opt.adam(1e-3, state_dtype="bfloat16"), 20),
        "8 bits": (quantize_state(functional_opt.adam(1e-3), 8), 16),
        "4 bits": (quantize_state(functional_opt.adam(1e-3), 4), 14),
    }

    def contenders(tx: Any) -> Callable[[], dict]:
        return lambda: {"ours": contender(functional_opt, tx, shapes, steps=steps)}

    return [
        Row(f"adam, state of {name}", contenders(tx), steps, each * elements / limits.memory)
        for name, (tx, each) in txs.items()
    ]


def matrices(count: int, rows: int, columns: int, limits: Limits, steps: int, device: str) -> list[Row]:
    """Returns the rows of Muon: products in float32 and float16, one step at a time and in pairs."""
    shapes = {str(i): (rows, columns) for i in range(count)}
    operations = 5 * count * 2 * (2 * rows**2 * columns + rows**3)

    def ours(dtype: Any, wide: float) -> Callable[[], None]:
        usual, newton_schulz.WIDE = newton_schulz.WIDE, wide
        try:
            return contender(functional_opt, muon(0.02, ns_dtype=dtype), shapes, steps=steps)  # traces it, too
        finally:
            newton_schulz.WIDE = usual

    def contenders(dtype: Any, wide: float) -> Callable[[], dict]:
        if dtype is not None or wide <= columns / rows:
            return lambda: {"ours": ours(dtype, wide)}
        return lambda: {
            "ours": ours(dtype, wide),
            "optax": contender(optax, optax.contrib.muon(0.02), shapes, steps=steps),
            "torch": fused(lambda params: torch.optim.Muon(params, 0.02), None, shapes, steps, device),
        }

    what = f"muon, {count} matrices of {rows} × {columns}"
    return [
        Row(f"{what}, {dtype or 'float32'}{pairs}", contenders(dtype, wide), steps, operations / limit)
        for dtype, limit in ((None, limits.tf32), ("float16", limits.half))
        for pairs, wide in (("", math.inf), (", in pairs", 1))
    ]


def main(rounds: int, minutes: float, small: bool) -> None:
    start = time.monotonic()
    device = jax.devices()[0]
    on = "cpu" if device.platform == "cpu" else "cuda"
    steps, width, n, many = (2, 64, 64, 20) if small else (20, 4096, 1024, 2000)
    limits = measured_limits(256 if small else 8192, steps)
    rows = [
        *elementwise(f"2 leaves of {width}²", {str(i): (width, width) for i in range(2)}, limits, steps, on),
        *coded({str(i): (width, width) for i in range(2)}, limits, steps),
        *matrices(2 if small else 72, n, n, limits, 1 if small else 4, on),
        *matrices(2 if small else 24, n, 4 * n, limits, 1 if small else 4, on),
        *elementwise("148 leaves", transformer(width=width // 8, words=2 * width, places=128), limits, steps, on),
        *elementwise(f"{many} leaves of 64", {str(i): (64,) for i in range(many)}, limits, steps, on),
    ]
    cells, late = [], []
    for work, contenders, calls, least in rows:
        if time.monotonic() - start > 60 * minutes:
            late.append(work)
            continue
        t = {k: v / calls for k, v in interleave(contenders(), rounds, work).items()}
        peers = [c for p in ("optax", "torch") for c in ((milliseconds(t[p]), ratio(t, p)) if p in t else ("–", "–"))]
        cells.append([work, f"{t['ours'] * 1e3:.3f}", *peers, f"{least / t['ours']:.2f}"])
        print(*cells[-1], sep=" | ", flush=True)
    columns = ["work", "ours, ms", "optax, ms", "ours / optax", "torch, ms", "ours / torch", "share of the limit"]
    notes = [
        f"Measured limits: {limits.memory / 1e9:.0f} GB/s read and written, {limits.tf32 / 1e12:.0f} TFLOP/s in "
        f"float32 as JAX computes it (TF32), {limits.half / 1e12:.0f} in float16. Muon's share counts the operations "
        "of plain steps. Steps are queued; the time is for one of them.",
        *([f"Not started within {minutes:.0f} minutes: {', '.join(late)}."] if late else []),
    ]
    write_table(f"GPU: {device.device_kind}", columns, cells, rounds, notes)


def ratio(seconds: dict[str, float], peer: str) -> str:
    return f"{seconds['ours'] / seconds[peer]:.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=8, help="after which no row is started")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.minutes, arguments.small)
