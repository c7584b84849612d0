"""Times compiling for many small leaves; counts recompilations for new numbers: `python -m benchmarks.compile`."""

import argparse
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax

import functional_opt

from .harness import interleave, milliseconds, write_table
from .step import chains

LEAVES, SIZE = 2000, 64


def contender(library: ModuleType, tx: Any) -> tuple[float, float, Callable[[], None]]:
    """Returns the seconds to trace and lower a step, those to compile it, and a function that runs one and waits."""

    def update(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return library.apply_updates(params, updates), state

    params = {f"w{i}": jnp.full(SIZE, 0.01) for i in range(LEAVES)}
    grads = jax.tree.map(lambda x: x + 1, params)
    carry = params, tx.init(params)
    start = time.perf_counter()
    lowered = jax.jit(update, donate_argnums=(0, 1)).lower(*carry, grads)
    middle = time.perf_counter()
    step = lowered.compile()
    end = time.perf_counter()

    def run():
        nonlocal carry
        carry = jax.block_until_ready(step(*carry, grads))

    return middle - start, end - middle, run


def nothing() -> Callable[[], None]:
    """Returns a step that only returns params and state: it takes JAX's own time for as many arrays."""
    params = {f"w{i}": jnp.full(SIZE, 0.01) for i in range(LEAVES)}
    grads = jax.tree.map(lambda x: x + 1, params)
    carry = params, chains(optax)["clip + adamw"].init(params)
    step = jax.jit(lambda params, state, grads: (params, state), donate_argnums=(0, 1), keep_unused=True)

    def run():
        nonlocal carry
        carry = jax.block_until_ready(step(*carry, grads))

    return run


def compilations(changes: int = 200) -> int:
    """Returns how often a step is recompiled when it is given transformations with other numbers."""

    @jax.jit
    def step(tx, params, state, grads):
        updates, state = tx.update(grads, state, params)
        return functional_opt.apply_updates(params, updates), state

    params = {"w": jnp.zeros(3)}
    make = lambda i: functional_opt.chain(  # noqa: E731
        functional_opt.clip_by_global_norm(1.0 + i), functional_opt.adamw(1e-3 / (1 + i), b1=0.9 - i / 1000)
    )
    state = make(0).init(params)
    params, state = step(make(0), params, state, params)
    before = step._cache_size()
    for i in range(changes):
        params, state = step(make(i), params, state, params)
    return step._cache_size() - before


def main(rounds: int) -> None:
    ours = contender(functional_opt, chains(functional_opt)["clip + adamw"])
    theirs = contender(optax, chains(optax)["clip + adamw"])
    t = interleave({"ours": ours[-1], "optax": theirs[-1], "nothing": nothing()}, rounds, "step")
    rows = [
        ("trace and lower", ours[0], theirs[0]),
        ("compile", ours[1], theirs[1]),
        ("trace, lower and compile", sum(ours[:2]), sum(theirs[:2])),
        ("step", t["ours"], t["optax"]),
    ]
    cells = [[work, milliseconds(a), milliseconds(b), f"{a / b:.2f}"] for work, a, b in rows]
    notes = [
        "Each is compiled once; the step is timed as in the other tables. "
        f"A step that returns the same arrays unchanged: {milliseconds(t['nothing'])} ms.",
        "Recompilations in 200 steps, each given a transformation with other numbers as an argument: "
        f"{compilations()}.",
    ]
    title = f"clip + adamw, {LEAVES} leaves of {SIZE}"
    write_table(title, ["work", "ours, ms", "optax, ms", "ours / optax"], cells, rounds, notes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    main(parser.parse_args().rounds)
