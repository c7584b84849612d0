"""Clips with a memory in float64 NumPy, from their papers: from gradients, a list of leaves a step, to updates."""

import numpy as np


def norm(g):
    return np.sqrt(sum(np.sum(x**2) for x in g))


def zclip(grads, decay, z_threshold, warmup_steps, eps=1e-6):
    """Algorithm 1 of arXiv:2504.02507, with reciprocal clipping."""
    norms, mean, var = [], 0.0, 0.0
    for g in grads:
        n = target = norm(g)
        if len(norms) < warmup_steps:
            norms.append(n)
            mean, var = np.mean(norms), np.var(norms)
        else:
            z = (n - mean) / (np.sqrt(var) + eps)
            if z > z_threshold:
                target = mean + z_threshold**2 / z * np.sqrt(var)
            mean = decay * mean + (1 - decay) * target
            var = decay * var + (1 - decay) * (target - mean) ** 2
        yield [x * target / n for x in g]


def adagc(grads, relative, absolute, decay, warmup_steps):
    """Algorithm 1 of arXiv:2502.11034; h the factor, γ the averages, +∞ before the first step."""
    averages = None
    for t, g in enumerate(grads):
        averages = [np.inf] * len(g) if averages is None else averages
        if t < warmup_steps:
            h = min(absolute / norm(g), 1.0)
            u = [h * x for x in g]
            averages = [min(a, np.linalg.norm(x)) for a, x in zip(averages, u, strict=True)]
        else:
            u = [min(relative * a / np.linalg.norm(x), 1.0) * x for a, x in zip(averages, g, strict=True)]
            averages = [decay * a + (1 - decay) * np.linalg.norm(x) for a, x in zip(averages, u, strict=True)]
        yield u


def clip_by_quantile(grads, quantile, window):
    """AutoClip, arXiv:2007.14469, with the last norms only."""
    norms = []
    for g in grads:
        norms = [*norms, norm(g)][-window:]
        yield [min(1.0, np.quantile(norms, quantile) / norms[-1]) * x for x in g]
