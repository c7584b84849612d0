"""References, as in `references.py`, for what is told the loss; the losses are those of `cases_linesearch.py`."""

import numpy as np

from .references import Run
from .references_free import joint


@joint
def polyak_sgd(w, grads, max_learning_rate, eps) -> Run:
    """Loizou et al. 2021, equation 7 with c = 1, f* = 0 and an ε."""
    for g in grads:
        loss, square = 1 + 0.5 * np.sum(g**2), np.sum(g**2)
        w = w - min(loss / (square + eps), max_learning_rate) * g
        yield w


@joint
def backtracking(w, grads, slope_rtol=1e-4, rtol=0.0) -> Run:
    """Armijo 1966 on ½‖w‖², from 1.5 times the last step size, at most 1, by factors of 0.8, 15 at most."""
    rate = 1.0
    for g in grads:
        value, slope, rate = 0.5 * np.sum(w**2), -np.sum(g * w), min(1.5 * rate, 1.0)
        for _ in range(15):
            if 0.5 * np.sum((w - rate * g) ** 2) <= (1 + rtol) * value + slope_rtol * rate * slope:
                break
            rate = 0.8 * rate
        w = w - rate * g
        yield w


def directions(memory_size, scale_init_precond=True, keep_negative=False):
    """A function of params and gradients, step by step: Nocedal & Wright 2006, equations 7.16 to 7.20.

    Pairs of negative curvature are left out, or kept as in Optax.
    """
    pairs, last = [], []

    def direction(w, g):
        if last:
            pairs.append((w - last[0], g - last[1]))
        last[:] = w, g
        s_y = [(s, y) for s, y in pairs[-memory_size:] if s @ y > 0 or keep_negative]
        scale = s_y[-1][0] @ s_y[-1][1] / (s_y[-1][1] @ s_y[-1][1]) if s_y else min(1.0, 1 / np.linalg.norm(g))
        inverse = np.eye(len(w)) * (scale if scale_init_precond else 1.0)
        for s, y in s_y:
            v = np.eye(len(w)) - np.outer(y, s) / (s @ y)
            inverse = v.T @ inverse @ v + np.outer(s, s) / (s @ y)
        return -inverse @ g

    return direction


@joint
def lbfgs(w, grads, learning_rate, memory_size, scale_init_precond=True) -> Run:
    direction = directions(memory_size, scale_init_precond, keep_negative=True)
    for g in grads:
        w = w + learning_rate * direction(w, g)
        yield w


@joint
def lbfgs_on_parabolas(w, grads, memory_size) -> Run:
    """With Nocedal & Wright's algorithm 3.5, c₂ = 0.1, from 1; 3.6 needs one interpolation on a parabola."""
    direction = directions(memory_size)
    for g in grads:
        d = direction(w, g)
        slope, rate = g @ d, 1.0
        while slope + 2 * rate * (d @ d) < 0.1 * slope:
            rate = 2 * rate
        if slope + 2 * rate * (d @ d) > -0.1 * slope:
            rate = -slope / (2 * (d @ d))
        w = w + rate * d
        yield w
