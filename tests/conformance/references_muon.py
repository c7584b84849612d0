"""References, as in `references.py`, for the optimizers that make matrices orthogonal."""

import jax
import numpy as np

from .references import Run, adamw
from .references_matrix import soap_directions


def quintic(x, steps=5):
    """Jordan's iteration, on the singular values."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    s = s / (np.sqrt(np.sum(s**2)) + 1e-8)
    for _ in range(steps):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


def normuon(w, grads, learning_rate, b1=0.95, b2=0.95, weight_decay=0.0, consistent_rms=0.2, nesterov=True) -> Run:
    """Li et al. 2025, algorithm 1, neurons along the columns; or their code's norm and scale."""
    if w.ndim != 2:
        yield from adamw(w, grads, learning_rate, weight_decay=0.0)
        return
    m, v = np.zeros_like(w), np.zeros(w.shape[1])
    for g in grads:
        m = b1 * m + (1 - b1) * g
        o = quintic(b1 * m + (1 - b1) * g if nesterov else m)
        v = b2 * v + (1 - b2) * np.mean(o**2, axis=0)
        u = o / (np.sqrt(v) + 1e-8)
        if consistent_rms is None:
            size = np.linalg.norm(o) * max(1, w.shape[1] / w.shape[0]) ** 0.5
        else:
            size = consistent_rms * np.sqrt(w.size)
        w = w - learning_rate * (size * u / (np.linalg.norm(u) + 1e-8) + weight_decay * w)
        yield w


def scion(w, grads, learning_rate, momentum=0.1, scale=50.0, constrained=True) -> Run:
    """Pethick et al. 2025, algorithms 1 and 2, for hidden matrices of shape (inputs, outputs), and vectors."""
    d = np.zeros_like(w)
    for g in grads:
        d = (1 - momentum) * d + momentum * g
        if w.ndim == 2:
            u = np.sqrt(w.shape[1] / w.shape[0]) * quintic(d)
        else:
            u = np.sqrt(w.size) * d / (np.sqrt(np.sum(d**2)) + 1e-8)
        w = (1 - learning_rate if constrained else 1.0) * w - learning_rate * scale * u
        yield w


def dion(w, grads, learning_rate, momentum=0.95, rank=1, weight_decay=0.0) -> Run:
    """Ahn et al. 2025, algorithm 1, on the transposes, of shape (outputs, inputs), from the library's random Q."""
    if w.ndim != 2:
        yield from adamw(w, grads, learning_rate, weight_decay=0.0)
        return
    m, scale = np.zeros_like(w.T), np.sqrt(w.shape[1] / w.shape[0])
    q = np.asarray(jax.random.normal(jax.random.key(0), (w.shape[0], rank), "float32"), np.float64)
    for g in grads:
        b = m + g.T
        p = np.linalg.qr(b @ q)[0]
        r = b.T @ p
        m = b - (1 - momentum) * p @ r.T
        q = r / (np.linalg.norm(r, axis=0) + 1e-8)
        w = w - learning_rate * (scale * (p @ q.T).T + weight_decay * w)
        yield w


def on_sphere(w, u, learning_rate):
    """Wen et al. 2026: a step along u, relative to ‖w‖, and back to the norm of w."""
    r = np.linalg.norm(w)
    w = w - learning_rate * r * u / np.linalg.norm(u)
    return r * w / np.linalg.norm(w)


def adamh(w, grads, learning_rate, b1=0.9, b2=0.95, eps=1e-8, adam_weight_decay=0.0) -> Run:
    if w.ndim != 2:
        yield from adamw(w, grads, learning_rate, b1, b2, eps, weight_decay=adam_weight_decay)
        return
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = on_sphere(w, m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps), learning_rate)
        yield w


def muonh(w, grads, learning_rate, beta=0.95, adam_weight_decay=0.0) -> Run:
    if w.ndim != 2:
        yield from adamw(w, grads, learning_rate, b2=0.95, weight_decay=adam_weight_decay)
        return
    m = np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m = beta * m + (1 - beta) * g
        m_hat = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
        w = on_sphere(w, quintic(m_hat), learning_rate)
        yield w


def soap_muon(w, grads, learning_rate, weight_decay=0.0, adam_weight_decay=0.0, **rule) -> Run:
    """Vyas et al. 2025: SOAP's directions, orthogonalized, at Muon's scale."""
    if w.ndim != 2:
        yield from adamw(w, grads, learning_rate, weight_decay=adam_weight_decay)
        return
    for u in soap_directions(w, grads, b2=0.98, **rule):
        w = w - learning_rate * (max(1, w.shape[1] / w.shape[0]) ** 0.5 * quintic(u) + weight_decay * w)
        yield w


def muown(w, grads, learning_rate, momentum=0.95, weight_decay=0.0, adam_weight_decay=0.0) -> Run:
    """Lion et al. 2026, algorithm 1, with columns instead of rows; keeps v whole."""
    if w.ndim != 2:
        yield from adamw(w, grads, learning_rate, b2=0.95, weight_decay=adam_weight_decay)
        return
    v, g = w, np.linalg.norm(w, axis=0)
    m, mean, square = np.zeros_like(w), np.zeros_like(g), np.zeros_like(g)
    for t, grad in enumerate(grads, 1):
        n = v / np.linalg.norm(v, axis=0)
        of_g = np.sum(n * grad, axis=0)
        of_v = g / np.linalg.norm(v, axis=0) * (grad - n * of_g)
        m = momentum * m + of_v
        v = v - learning_rate * 0.2 * max(w.shape) ** 0.5 * quintic(of_v + momentum * m)
        mean, square = 0.9 * mean + 0.1 * of_g, 0.95 * square + 0.05 * of_g**2
        step = mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.95**t)) + 1e-8)
        g = g - learning_rate * (step + weight_decay * g)
        yield g * v / np.linalg.norm(v, axis=0)
