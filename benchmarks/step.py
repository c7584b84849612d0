"""The time of one jitted, donated update step next to Optax's: `python -m benchmarks.step`."""

import argparse
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax

import functional_opt

from .harness import interleave, report


def contender(library: ModuleType, tx: Any, params: dict):
    """A function that does one step and waits for it."""

    def update(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return library.apply_updates(params, updates), state

    step = jax.jit(update, donate_argnums=(0, 1))
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape), params)
    carry = jax.tree.map(jnp.copy, params), tx.init(params)

    def run():
        nonlocal carry
        carry = jax.block_until_ready(step(*carry, grads))

    return run


def chains(library: ModuleType) -> dict[str, Any]:
    """The same optimizers from either library."""
    return {
        "adam": library.adam(1e-3),
        "clip + adamw": library.chain(library.clip_by_global_norm(1.0), library.adamw(1e-3)),
        "sgd, momentum": library.sgd(1e-3, momentum=0.9),
        "lion": library.lion(1e-3),
    }


def main(rounds: int) -> None:
    sizes = {
        "33.5M parameters in 2 leaves": {str(i): jnp.full((4096, 4096), 0.01) for i in range(2)},
        "4.2M parameters in 148 leaves": {str(i): jnp.full((168, 168), 0.01) for i in range(148)},
    }
    ours, theirs = chains(functional_opt), chains(optax)
    rows = []
    for size, params in sizes.items():
        for name in ours:
            contenders = {
                "ours": contender(functional_opt, ours[name], params),
                "optax": contender(optax, theirs[name], params),
            }
            rows.append((f"{name}, {size}", interleave(contenders, rounds, name)))
    report("Update step, CPU", rows, ["optax"], rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    main(parser.parse_args().rounds)
