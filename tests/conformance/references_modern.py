"""References, as in `references.py`, for Adam's modern family."""

import zlib

import jax
import numpy as np

from .references import Run


def stable_adamw(w, grads, learning_rate, b1=0.9, b2=0.99, eps=1e-8, weight_decay=1e-2) -> Run:
    """Wortsman et al. 2023, algorithm 2."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        b1_hat, b2_hat = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (b1, b2))
        m = b1_hat * m + (1 - b1_hat) * g
        v = b2_hat * v + (1 - b2_hat) * g**2
        rate = learning_rate / max(1.0, np.sqrt(np.mean(g**2 / np.maximum(v, eps**2))))
        w = w - rate * weight_decay * w - rate * m / (np.sqrt(v) + eps)
        yield w


def laprop(w, grads, learning_rate, b1=0.9, b2=0.999, eps=1e-15, weight_decay=0.0) -> Run:
    """Ziyin, Wang & Ueda 2020, algorithm 1, with decoupled decay."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        v = b2 * v + (1 - b2) * g**2
        m = b1 * m + (1 - b1) * g / (np.sqrt(v / (1 - b2**t)) + eps)
        w = w - learning_rate * (m / (1 - b1**t) + weight_decay * w)
        yield w


def mars(w, grads, learning_rate, b1=0.95, b2=0.99, eps=1e-8, gamma=0.025, weight_decay=0.0) -> Run:
    """Yuan et al. 2024, algorithm 2, with the last gradient in place of the last batch's."""
    m, v, before = np.zeros_like(w), np.zeros_like(w), grads[0]
    for t, g in enumerate(grads, 1):
        c = g + gamma * b1 / (1 - b1) * (g - before)
        norm = np.sqrt(np.sum(c**2))
        c = c / norm if norm > 1 else c
        m = b1 * m + (1 - b1) * c
        v = b2 * v + (1 - b2) * c**2
        w = w - learning_rate * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + weight_decay * w)
        before = g
        yield w


def adam_mini(w, grads, learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0) -> Run:
    """Zhang et al. 2024, algorithm 1, with a block for every column of a matrix."""
    m, v = np.zeros_like(w), 0.0
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.mean(g**2, axis=0 if w.ndim == 2 else None)
        w = w - learning_rate * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + weight_decay * w)
        yield w


def spam(
    w, grads, learning_rate, threshold, reset_interval, warmup_steps, settle_steps, weight_decay, density=1, **adam
) -> Run:
    """Huang et al. 2025, algorithm 1; settle_steps and the correction as in their code. The mask is the library's."""
    b1, b2, eps = (adam.get(name, default) for name, default in (("b1", 0.9), ("b2", 0.999), ("eps", 1e-6)))
    mask = np.ones(w.shape, bool)
    for t, g in enumerate(grads, 1):
        k = t % reset_interval
        if t == 1 or k == 0:
            m, v = np.zeros_like(w), np.zeros_like(w)
            if density < 1 and w.ndim == 2:
                mask = mask_of_spam(w.shape, density, t // reset_interval)
        g = mask * g
        if k >= settle_steps:
            g = np.where((v > 0) & (g**2 > threshold * v), np.sign(g) * np.sqrt(threshold * v), g)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        annealed = 0.99 * (1 + np.cos(np.pi * k / (warmup_steps + 1))) / 2
        warm = 1 - annealed if t >= reset_interval and k < warmup_steps else 1.0
        u = warm * m / (np.sqrt(v) + eps) * np.sqrt(1 - b2**t) / (1 - b1**t)
        w = w - learning_rate * (u + weight_decay * w)
        yield w


def mask_of_spam(shape, density, resets):
    """One element of each run of columns, by the key for the one matrix of the tests."""
    key = jax.random.fold_in(jax.random.key(0), np.uint32(resets))
    n = round(density * shape[1])
    ends = [i * shape[1] // n for i in range(n + 1)]
    key = jax.random.fold_in(key, np.uint32(zlib.crc32(b"['dense']['kernel']")))
    mask = np.zeros(shape, bool)
    chosen = jax.random.randint(key, (shape[0], n), np.array(ends[:-1]), np.array(ends[1:]), "int32")
    np.put_along_axis(mask, np.asarray(chosen), True, 1)
    return mask


def cautious(w, grads, learning_rate, eps=1.0) -> Run:
    """Liang et al. 2024, algorithm 2, around Adam."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        phi = u * g > 0
        w = w - learning_rate * w.size / (np.sum(phi) + eps) * phi * u
        yield w


def cautious_decay(w, grads, learning_rate, weight_decay, **_) -> Run:
    """Chen et al. 2025, algorithm 1, after momentum, and with the mask of updates before the decay."""
    t = np.zeros_like(w)
    for g in grads:
        t = g + 0.5 * t
        phi = t * g > 0
        u = phi * t * w.size / (np.sum(phi) + 1)
        w = w - learning_rate * (u + weight_decay * (u * w >= 0) * w)
        yield w


def apollo(w, grads, learning_rate, rank=256, update_proj_gap=200, scale=1.0, channels=True, weight_decay=0.0) -> Run:
    """Zhu et al. 2024, algorithm 1, for the one matrix of the tests and its key; corrected as in their code."""
    m, v, last, name = 0.0, 0.0, np.inf, zlib.crc32(b"['dense']['kernel']")
    for t, g in enumerate(grads, 1):
        r = g
        if w.ndim == 2:
            key = jax.random.fold_in(jax.random.key(0), (t - 1) // update_proj_gap)
            p = jax.random.normal(jax.random.fold_in(key, np.uint32(name)), (rank, w.shape[1]), "float32")
            r = g @ np.asarray(p, np.float64).T / np.sqrt(rank)
        m, v = 0.9 * m + 0.1 * r, 0.999 * v + 0.001 * r**2
        u = m / (np.sqrt(v) + 1e-6)
        if w.ndim == 2:
            axis = 1 if channels else (0, 1)
            u = np.sqrt(np.sum(u**2, axis, keepdims=True) / np.sum(r**2, axis, keepdims=True)) * g
            norm = np.sqrt(np.sum(u**2))
            u, last = (u * 1.01 * last / norm, 1.01 * last) if norm > 1.01 * last else (u, norm)
            u = scale * u
        w = w - learning_rate * (np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * u + weight_decay * w)
        yield w


def apollo_mini(w, grads, learning_rate, scale=128**0.5) -> Run:
    """The same with rank 1 and one factor for a matrix."""
    yield from apollo(w, grads, learning_rate, 1, scale=scale, channels=False)


def adamc(w, grads, learning_rate, weight_decay, b1, b2=0.999, eps=1e-8) -> Run:
    """Defazio 2025, algorithm 2, for normalized layers; the learning rate falls to half in 100 steps."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        rate = learning_rate * (1 - 0.5 * min(1, (t - 1) / 100))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        w = w - rate * step - rate**2 / learning_rate * weight_decay * w
        yield w


def ema_nesterov(w, grads, learning_rate, lookahead, decay, momentum) -> Run:
    """Yau et al. 2026 around momentum: yields where gradients are taken; β is 0 at steps before 3 and from 40 on."""
    x, m, v = w, np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads):
        y = x + (lookahead if 3 <= t < 40 else 0) * m
        v = momentum * v + g
        before, x = x, y - learning_rate * v
        m = decay * m + (1 - decay) * (x - before)
        yield x + (lookahead if 3 <= t + 1 < 40 else 0) * m
