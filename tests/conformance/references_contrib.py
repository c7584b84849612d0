"""References, as in `references.py`, for the optimizers of `contrib`."""

import numpy as np

from .references import Run, adam


def madgrad(w, grads, learning_rate, momentum=0.9, weight_decay=0.0, eps=1e-6) -> Run:
    """Defazio & Jelassi 2021, algorithm 1, with the decay and the eps of the rate of their code."""
    x0, s, v = w, np.zeros_like(w), np.zeros_like(w)
    for k, g in enumerate(grads):
        g = g + weight_decay * w
        lam = (learning_rate + eps) * np.sqrt(k + 1)
        s = s + lam * g
        v = v + lam * g**2
        z = x0 - s / (np.cbrt(v) + eps)
        w = momentum * w + (1 - momentum) * z
        yield w


def acprop(w, grads, learning_rate, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16, weight_decay=0.0) -> Run:
    """Zhuang et al. 2021, algorithm 2, g less the mean before it."""
    m, v, v_hat = np.zeros_like(w), np.zeros_like(w), np.ones_like(w)
    for t, g in enumerate(grads, 1):
        w = w - learning_rate * (g / (np.sqrt(v_hat) + eps) + weight_decay * w)
        v = b2 * v + (1 - b2) * (g - m) ** 2 + eps_root
        v_hat = v / (1 - b2**t)
        m = b1 * m + (1 - b1) * g
        yield w


def sophia(
    w,
    grads,
    learning_rate,
    b1=0.965,
    b2=0.99,
    eps=1e-8,
    weight_decay=1e-4,
    gamma=0.01,
    clip_threshold=1.0,
    update_interval=10,
    hessian_diagonal_fn=None,
) -> Run:
    """Liu et al. 2023, algorithm 3, with m corrected, h of the step before, and g² for its estimate."""
    m, h = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        u = m / (1 - b1**t) / np.maximum(gamma * h, eps)
        u = u if clip_threshold is None else np.clip(u, -clip_threshold, clip_threshold)
        h = b2 * h + (1 - b2) * g**2 if t % update_interval == 1 else h
        w = w - learning_rate * (u + weight_decay * w)
        yield w


def sam(w, grads, learning_rate, rho, sync_period=2, reset_state=True, momentum=0.9) -> Run:
    """Foret et al. 2020, algorithm 1, uphill by gradient descent with momentum, one gradient a step."""
    v, t = w, np.zeros_like(w)
    for i, g in enumerate(grads, 1):
        if i % sync_period:
            t = g + momentum * t
            v = v + rho * t
        else:
            w, t = w - learning_rate * g, np.zeros_like(w) if reset_state else t
            v = w
        yield v


def galore(w, grads, learning_rate, rank=128, update_proj_gap=200, scale=1.0, weight_decay=0.0) -> Run:
    """Zhao et al. 2024, algorithm 2, P on the longer side; Adam for what is no matrix."""
    if w.ndim != 2:
        yield from adam(w, grads, learning_rate)
        return
    wide = w.shape[0] < w.shape[1]
    w, grads = (w.T, grads.mT) if wide else (w, grads)
    p, m, v = None, 0.0, 0.0
    for t, g in enumerate(grads, 1):
        p = np.linalg.svd(g)[0][:, : min(rank, g.shape[1])] if t % update_proj_gap == 1 else p
        r = p.T @ g
        m, v = 0.9 * m + 0.1 * r, 0.999 * v + 0.001 * r**2
        u = p @ (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8))
        w = w - learning_rate * (scale * u + weight_decay * w)
        yield w.T if wide else w
