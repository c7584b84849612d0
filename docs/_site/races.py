"""Runs the optimizers of the gallery on three small problems, each at the best of nine learning rates."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import functional_opt as fo

FACTORS = 10.0 ** np.linspace(-2, 2, 9)
"""The rates tried, times the usual rate of each optimizer."""
MATRIX = fo.MuonDimensionNumbers()


class Racer(NamedTuple):
    """An optimizer of the gallery. `make(rate)`; `rate`: in the middle of those tried; `says`: what to look for."""

    make: Callable[[Any], Any]
    rate: float
    says: str


REFERENCE = Racer(lambda rate: fo.adamw(rate, weight_decay=0.0), 1e-2, "")
RACERS = {
    "sgd": Racer(lambda rate: fo.sgd(rate, momentum=0.9), 1e-2, "Momentum alone: it overshoots where the slope is steep, and crosses the valley."),
    "rmsprop": Racer(fo.rmsprop, 1e-2, "AdamW without the mean of the gradients: it follows each gradient, noise and all."),
    "lion": Racer(lambda rate: fo.lion(rate, weight_decay=0.0), 1e-3, "Only signs: every step has one length, so it circles a minimum unless the rate falls."),
    "adan": Racer(fo.adan, 1e-2, "Looks ahead by the change of the gradient, which straightens the way round a bend."),
    "ademamix": Racer(fo.ademamix, 3e-3, "A second, slow mean: it keeps going in directions that lasted."),
    "adopt": Racer(fo.adopt, 1e-2, "Divides by the second moment from before the step, so the first steps differ from AdamW's."),
    "mars": Racer(fo.mars, 1e-2, "Corrects each gradient by its difference from the last one."),
    "schedule_free_adamw": Racer(fo.schedule_free_adamw, 1e-2, "Drawn at the averaged params, which need no schedule to settle."),
    "prodigy": Racer(lambda rate: fo.prodigy(rate), 1.0, "Finds its own rate: the first steps are tiny, then they grow."),
    "muon": Racer(lambda rate: fo.muon(rate), 2e-2, "Makes the update of a matrix orthogonal; on two numbers, that leaves a direction of length 1."),
    "soap": Racer(lambda rate: fo.soap(rate, weight_decay=0.0), 1e-2, "Adam in the axes of the curvature: it turns into the valley."),
    "shampoo": Racer(lambda rate: fo.shampoo(rate, weight_decay=0.0), 1e-2, "Divides by a root of the whole second moment, not of its diagonal."),
}


class Race(NamedTuple):
    """A run. `rate`: the best of those tried. `points`: the params after each step. `losses`: one a step."""

    rate: float
    points: np.ndarray
    losses: np.ndarray


def rosenbrock(p: jax.Array) -> jax.Array:
    """Rosenbrock's function, a curved valley: at its minimum, (1, 1), it is 0."""
    x, y = p[..., 0], p[..., 1]
    return (1 - x) ** 2 + 20 * (y - x**2) ** 2


def bowl(p: jax.Array) -> jax.Array:
    """A bowl ten times steeper along y than along x."""
    return 0.5 * (p[..., 0] ** 2 + 10 * p[..., 1] ** 2)


def planar(f: Callable, start: tuple[float, float], steps: int, noise: float) -> Callable[[Any], tuple]:
    """Returns the run of an optimizer in the plane; the gradients have the same noise for all optimizers.

    The two numbers are a matrix with one row, so that methods for matrices have one.
    """
    grains = noise * jax.random.normal(jax.random.key(0), (steps, 1, 2))

    def run(tx: Any) -> tuple:
        def step(carry, grain):
            params, state = carry
            grads = {"kernel": jax.grad(lambda p: f(p).sum())(params["kernel"]) + grain}
            updates, state = tx.update(grads, state, params)
            params = fo.apply_updates(params, updates)
            at = fo.eval_params(state, params) if isinstance(state, fo.ScheduleFreeState) else params
            return (params, state), (at["kernel"][0], f(at["kernel"])[0])

        params = {"kernel": jnp.array([start])}
        return jax.lax.scan(step, (params, tx.init(params)), grains)[1]

    return run


def digits(steps: int = 150, batch: int = 128, hidden: int = 24) -> Callable[[Any], tuple]:
    """Returns the run of an optimizer on the digits of scikit-learn: a network with one hidden layer."""
    data = load_digits()
    images, labels = jnp.asarray(data.data / 16, jnp.float32), jnp.asarray(data.target)
    keys = jax.random.split(jax.random.key(1), 3)
    params = {
        "hidden": {"kernel": jax.random.normal(keys[0], (64, hidden)) / 8, "bias": jnp.zeros(hidden)},
        "output": {"kernel": jax.random.normal(keys[1], (hidden, 10)) / hidden**0.5, "bias": jnp.zeros(10)},
    }
    batches = jax.random.randint(keys[2], (steps, batch), 0, len(images))

    def loss(params, chosen):
        x = jnp.tanh(images[chosen] @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        logits = x @ params["output"]["kernel"] + params["output"]["bias"]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[chosen][:, None], 1))

    def run(tx: Any) -> tuple:
        def step(carry, chosen):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, chosen)
            updates, state = tx.update(grads, state, params)
            return (fo.apply_updates(params, updates), state), (jnp.zeros(2), value)

        return jax.lax.scan(step, (params, tx.init(params)), batches)[1]

    return run


def race(racer: Racer, run: Callable[[Any], tuple]) -> Race:
    """Runs an optimizer at all rates in one compiled program. Returns the run with the least mean of the last losses."""
    rates = racer.rate * FACTORS
    points, losses = map(np.asarray, jax.jit(jax.vmap(lambda rate: run(racer.make(rate))))(jnp.asarray(rates)))
    tail = losses[:, -max(10, losses.shape[1] // 5) :].mean(axis=1)
    best = int(np.nanargmin(np.where(np.isfinite(tail), tail, np.inf)))
    return Race(float(rates[best]), points[best], losses[best])


TASKS: dict[str, Callable[[], Callable]] = {
    "valley": functools.partial(planar, rosenbrock, (-1.2, 1.0), 200, 0.0),
    "bowl": functools.partial(planar, bowl, (-2.0, 1.0), 150, 1.0),
    "digits": digits,
}
