"""Times one eager `apply_gradients` against Keras 3's and torch's fused step: `python -m benchmarks.facade`."""

import argparse
import os
from collections.abc import Callable

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
import torch

from functional_opt.keras import Variable, optimizers
from functional_opt.keras.engine.eager import jitted_step

from .harness import interleave, milliseconds, report
from .shapes import Shapes, transformer


def arrays(shapes: Shapes, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 0.02, shape).astype(np.float32) for shape in shapes.values()]


def ours(opt: optimizers.Optimizer, shapes: Shapes) -> Callable[[], None]:
    """Returns a function that runs one step and waits for it, as do the next two functions."""
    variables = [Variable(x, name=name) for name, x in zip(shapes, arrays(shapes, 0), strict=True)]
    grads = [jax.device_put(x) for x in arrays(shapes, 1)]

    def run():
        opt.apply_gradients(zip(grads, variables, strict=True))
        jax.block_until_ready(variables[-1].value)  # all are results of one program

    return run


def keras3(opt: keras.optimizers.Optimizer, shapes: Shapes) -> Callable[[], None]:
    variables = [keras.Variable(x) for x in arrays(shapes, 0)]
    grads = [jax.device_put(x) for x in arrays(shapes, 1)]
    opt.build(variables)

    def run():
        opt.apply(grads, variables)
        jax.block_until_ready([v.value for v in variables])

    return run


def fused(make: Callable, shapes: Shapes) -> Callable[[], None]:
    params = [torch.nn.Parameter(torch.from_numpy(x)) for x in arrays(shapes, 0)]
    for p, x in zip(params, arrays(shapes, 1), strict=True):
        p.grad = torch.from_numpy(x)
    return make(params).step


def sums(shapes: Shapes) -> Callable[[], None]:
    """Returns a function that adds the gradients in a jitted sum: it takes JAX's own time for as many arrays."""
    values, grads = ([jax.device_put(x) for x in arrays(shapes, i)] for i in range(2))
    add = jax.jit(lambda values, grads: [v + g for v, g in zip(values, grads, strict=True)], donate_argnums=0)

    def run():
        nonlocal values
        values = jax.block_until_ready(add(values, grads))

    return run


def compilations(shapes: Shapes, assignments: int = 200) -> int:
    """Returns how often a step is recompiled when hyperparameters are assigned between steps."""
    opt = optimizers.Adam(1e-3)
    run = ours(opt, shapes)

    def assign(i: int) -> None:
        if i % 3 == 0:
            opt.learning_rate = 1e-3 / (1 + i)
        elif i % 3 == 1:
            opt.beta_1 = 0.9 - i / 1000
        else:
            opt.learning_rate = optimizers.schedules.ExponentialDecay(1e-3 / (1 + i), 10 + i, 0.9)
        run()

    for i in range(3):  # a number and a schedule are one program each
        assign(i)
    before = jitted_step._cache_size()
    for i in range(assignments):
        assign(i)
    return jitted_step._cache_size() - before


def main(rounds: int) -> None:
    shapes = transformer()
    rows = {
        "Adam": {
            "ours": ours(optimizers.Adam(1e-3), shapes),
            "keras": keras3(keras.optimizers.Adam(1e-3), shapes),
            "torch": fused(lambda params: torch.optim.Adam(params, 1e-3, fused=True), shapes),
        },
        "SGD, momentum": {
            "ours": ours(optimizers.SGD(1e-3, momentum=0.9), shapes),
            "keras": keras3(keras.optimizers.SGD(1e-3, momentum=0.9), shapes),
            "torch": fused(lambda params: torch.optim.SGD(params, 1e-3, momentum=0.9, fused=True), shapes),
            "sums": sums(shapes),
        },
    }
    times = [(name, interleave(contenders, rounds, name, calls=5)) for name, contenders in rows.items()]
    size = sum(x.size for x in arrays(shapes, 0)) / 1e6
    notes = [
        f"An eager step of {len(shapes)} variables, the {size:.2f}M parameters of a small transformer: ours is "
        "`apply_gradients`, Keras's is `apply` on JAX, torch's is `step` with `fused=True`. Each round has 5 steps.",
        f"JAX's time for a jitted sum of as many arrays: {milliseconds(times[-1][1]['sums'])} ms.",
        f"Recompilations in 200 steps with a learning rate, a beta_1 or a schedule assigned before each: "
        f"{compilations(shapes)}.",
    ]
    report("Eager step of the Keras facade, CPU", times, ["keras", "torch"], rounds, notes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    main(parser.parse_args().rounds)
