"""Measures Adam's time, state and distance to float32 in 8 and 4 bits: `python -m benchmarks.precision`."""

import argparse

import jax
import jax.numpy as jnp

import functional_opt
from functional_opt import adam, adamw, apply_updates, explain, master_weights, quantize_state

from .harness import interleave, milliseconds, write_table
from .step import contender


def main(rounds: int) -> None:
    shapes = {str(i): (4096, 4096) for i in range(2)}
    params = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    elements = sum(x.size for x in params.values())
    txs = {
        "float32": adam(1e-3),
        "bfloat16": adam(1e-3, state_dtype="bfloat16"),
        "8 bits": quantize_state(adam(1e-3), 8),
        "8 bits, companded": quantize_state(adam(1e-3), code="companded"),
        "4 bits": quantize_state(adam(1e-3), 4),
    }
    times = interleave(
        {name: contender(functional_opt, tx, shapes) for name, tx in txs.items()}, rounds, "Adam's state"
    )
    rows = [
        [name, f"{explain(tx, params).state_bytes / elements:.2f}", milliseconds(t), f"{t / times['float32']:.2f}"]
        for (name, tx), t in zip(txs.items(), times.values(), strict=True)
    ]
    columns = ["Adam's state", "bytes a parameter", "ms", "times float32"]
    write_table("Low precision, 33.5M parameters in 2 leaves, CPU", columns, rows, rounds)


STEPS, SHAPE = 300, (64, 256)


def distances() -> None:
    """Trains bfloat16 params on a quadratic with noisy gradients, beside AdamW in float32."""
    keys = jax.random.split(jax.random.key(0), 4)
    start, goal = (0.05 * jax.random.normal(key, SHAPE) for key in keys[:2])
    curvature = jnp.exp(jax.random.normal(keys[2], SHAPE))
    noise = 0.02 * jax.random.normal(keys[3], (STEPS, *SHAPE))

    def trained(tx, dtype):
        def step(carry, n):
            w, state = carry
            grads = curvature * (w.astype(jnp.float32) - goal) + n
            updates, state = tx.update(grads.astype(dtype), state, w)
            return (apply_updates(w, updates), state), None

        w = start.astype(dtype)
        (w, _), _ = jax.jit(lambda w: jax.lax.scan(step, (w, tx.init(w)), noise))(w)
        return w.astype(jnp.float32)

    rule = adamw(1e-3, weight_decay=0.1)
    exact = trained(rule, "float32")
    forms = {
        "float32 weights and state": master_weights(rule),
        "state in float32": rule,
        "int8 remainders, state in float32": master_weights(rule, "int8"),
        "int8 remainders, 8 bits": master_weights(quantize_state(rule), "int8"),
        "int8 remainders, 8 bits in blocks of 32": master_weights(quantize_state(rule, block_size=32), "int8"),
        "int8 remainders, companded (FlashOptim)": master_weights(quantize_state(rule, code="companded"), "int8"),
        "int8 remainders, companded, blocks of 256": master_weights(
            quantize_state(rule, code="companded", block_size=256), "int8"
        ),
    }
    rows = []
    for name, tx in forms.items():
        state = explain(tx, jax.ShapeDtypeStruct(SHAPE, "bfloat16")).state_bytes / start.size
        way = jnp.linalg.norm(trained(tx, "bfloat16") - exact) / jnp.linalg.norm(exact - start)
        rows.append([name, f"{state + 4:.2f}", f"{100 * way:.1f} %"])
    columns = ["bfloat16 params and gradients with", "bytes a parameter in all", "distance to float32"]
    title = f"AdamW beside float32 after {STEPS} steps on a noisy quadratic"
    write_table(title, columns, rows, 1, ["The distance of the params, as a part of the way that float32 goes."])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    main(parser.parse_args().rounds)
    distances()
