"""References, as in `references.py`, for rules that join the elements of a leaf or average its iterates."""

import numpy as np

from .references import Run, nadam


def lamb(w, grads, learning_rate, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.0) -> Run:
    """You et al. 2019, algorithm 2, φ the identity."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        r = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + weight_decay * w
        w = w - learning_rate * np.sqrt(np.sum(w**2) / np.sum(r**2)) * r
        yield w


def lars(w, grads, learning_rate, weight_decay=0.0, trust_coefficient=0.001, eps=0.0, momentum=0.9) -> Run:
    """You, Gitman & Ginsburg 2017, algorithm 1, the decay inside the norm."""
    v = np.zeros_like(w)
    for g in grads:
        g = g + weight_decay * w
        rate = learning_rate * trust_coefficient * np.sqrt(np.sum(w**2)) / (np.sqrt(np.sum(g**2)) + eps)
        v = momentum * v + rate * g
        w = w - v
        yield w


def adafactor(
    w,
    grads,
    learning_rate=1.0,
    min_dim_size_to_factor=128,
    decay_rate=0.8,
    multiply_by_parameter_scale=True,
    clipping_threshold=1.0,
    momentum=0.0,
    weight_decay_rate=0.0,
    eps=1e-30,
) -> Run:
    """Shazeer & Stern 2018, algorithms 4 and 5, with a mean over the steps and decay."""
    matrix = w.ndim == 2 and min(w.shape) >= min_dim_size_to_factor
    r, c, v, mean = 0.0, 0.0, np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        d = 1 - t**-decay_rate
        r = d * r + (1 - d) * np.sum(g**2 + eps, axis=-1, keepdims=True) if matrix else r
        c = d * c + (1 - d) * np.sum(g**2 + eps, axis=0, keepdims=True) if matrix else c
        v = r * c / np.sum(r) if matrix else d * v + (1 - d) * (g**2 + eps)
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt(np.mean(u**2)) / clipping_threshold)
        scale = max(1e-3, np.sqrt(np.mean(w**2))) if multiply_by_parameter_scale else 1.0
        mean = momentum * mean + (1 - momentum) * learning_rate * scale * u
        w = w - mean - weight_decay_rate * w
        yield w


def muon(w, grads, learning_rate, beta=0.95, weight_decay=0.0, consistent_rms=None, ns_steps=5) -> Run:
    """Jordan et al. 2024 with Adam's correction; Liu et al. 2025 for consistent_rms; Adam for what is no matrix."""
    if w.ndim != 2:
        yield from nadam(w, grads, learning_rate)
        return
    m, (rows, columns) = np.zeros_like(w), w.shape
    scale = max(1, columns / rows) ** 0.5 if consistent_rms is None else consistent_rms * max(rows, columns) ** 0.5
    for t, g in enumerate(grads, 1):
        m = beta * m + (1 - beta) * g
        x = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        s = s / (np.sqrt(np.sum(s**2)) + 1e-8)
        for _ in range(ns_steps):
            s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
        w = w - learning_rate * (scale * (u * s) @ vt + weight_decay * w)
        yield w


def schedule_free_sgd(w, grads, learning_rate, b1=0.9, weight_decay=0.0, weight_lr_power=2.0) -> Run:
    """Defazio et al. 2024, equations 3 to 5; at a constant rate any power weighs all steps alike."""
    x, z = w, w
    for t, g in enumerate(grads, 1):
        z = z - learning_rate * (g + weight_decay * w)
        x = (1 - 1 / t) * x + z / t
        w = (1 - b1) * z + b1 * x
        yield w


def schedule_free_adamw(w, grads, learning_rate, warmup_steps=0, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0) -> Run:
    """Defazio et al. 2024, algorithm 1, v corrected; as in the authors' code c is 0 until a rate is not."""
    x, z, v, total, largest = w, w, np.zeros_like(w), 0.0, 0.0
    for t, g in enumerate(grads, 1):
        rate = learning_rate * min(1.0, (t - 1) / warmup_steps if warmup_steps else 1.0)
        v = b2 * v + (1 - b2) * g**2
        z = z - rate * (g / (np.sqrt(v / (1 - b2**t)) + eps) + weight_decay * w)
        largest = max(largest, rate)
        total += largest**2
        x = x + (largest**2 / total if total else 0.0) * (z - x)
        w = (1 - b1) * z + b1 * x
        yield w
