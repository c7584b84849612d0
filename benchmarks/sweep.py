"""Times eight learning rates in one `vmap` program against eight runs of Optax: `python -m benchmarks.sweep`.

Each side is a separate process, timed from start to end: imports, compilations, training.
"""

import argparse
import subprocess
import sys

import jax
import jax.numpy as jnp

from .harness import interleave, milliseconds, write_table

RATES = [10 ** (-4 + i / 2) for i in range(8)]
STEPS, BATCH, WIDTHS = 500, 64, (64, 128, 128, 10)


def start() -> dict[str, jax.Array]:
    """Returns the params of a small network."""
    keys = jax.random.split(jax.random.key(0), len(WIDTHS))
    pairs = list(zip(WIDTHS, WIDTHS[1:], strict=False))
    kernels = {f"kernel_{i}": jax.random.normal(keys[i], pair) / pair[0] ** 0.5 for i, pair in enumerate(pairs)}
    return {**kernels, **{f"bias_{i}": jnp.zeros(b) for i, (_, b) in enumerate(pairs)}}


def loss(params: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """Returns the loss of one batch. The task: find which of the first ten entries of the input is the largest."""
    x = jax.random.normal(key, (BATCH, WIDTHS[0]))
    classes = jnp.argmax(x[:, : WIDTHS[-1]], axis=1)
    for i in range(len(WIDTHS) - 1):
        x = (jnp.tanh(x) if i else x) @ params[f"kernel_{i}"] + params[f"bias_{i}"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), classes[:, None], axis=1))


def train(library, tx) -> jax.Array:
    """Returns the loss at each step."""

    def step(carry, key):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, key)
        updates, state = tx.update(grads, state, params)
        return (library.apply_updates(params, updates), state), value

    params = start()
    return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(jax.random.key(1), STEPS))[1]


def ours() -> list[float]:
    """Returns the mean loss of the last steps for each rate, all in one program."""
    import functional_opt

    losses = jax.jit(jax.vmap(lambda tx: train(functional_opt, tx)))(jax.vmap(functional_opt.adam)(jnp.array(RATES)))
    return losses[:, -20:].mean(1).tolist()


def theirs() -> list[float]:
    """Returns the same from one run after another, with the rate written into each optimizer, as is usual."""
    import optax

    return [float(jax.jit(lambda rate=rate: train(optax, optax.adam(rate)))()[-20:].mean()) for rate in RATES]


def process(side: str):
    """Returns a function that runs one side in its own process."""
    return lambda: subprocess.run(
        [sys.executable, "-m", "benchmarks.sweep", "--side", side], check=True, stdout=subprocess.DEVNULL
    )


def main(rounds: int) -> None:
    t = interleave({"ours": process("ours"), "optax": process("optax")}, rounds, "processes")
    cells = [[milliseconds(t["ours"]), milliseconds(t["optax"]), f"{t['ours'] / t['optax']:.2f}"]]
    notes = [
        f"Adam, {STEPS} steps of a network of {len(WIDTHS) - 1} layers at {len(RATES)} rates. Times are of complete "
        "processes."
    ]
    columns = ["one vmap, ms", "Optax, 8 runs, ms", "ratio"]
    write_table("Eight learning rates", columns, cells, rounds, notes, where="of processes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--side", choices=["ours", "optax"], help="run one side and print its losses")
    side = parser.parse_args().side
    if side is None:
        main(parser.parse_args().rounds)
    else:
        print({"ours": ours, "optax": theirs}[side]())
