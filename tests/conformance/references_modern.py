"""References, as in `references.py`, for Adam's modern family."""

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
