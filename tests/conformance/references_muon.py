"""References, as in `references.py`, for the optimizers that make matrices orthogonal."""

import jax
import numpy as np

from .references import Run, adamw
from .references_by_leaf import muon
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


def normuon_of_blocks(w, grads, **args) -> Run:
    """The first three rows and the last one as matrices of their own."""
    if w.ndim != 2:
        yield from normuon(w, grads, **args)
        return
    runs = [normuon(w[rows], [g[rows] for g in grads], **args) for rows in (slice(3), slice(3, None))]
    yield from map(np.concatenate, zip(*runs, strict=True))


def muon_of_heads(w, grads, **args) -> Run:
    """Each half of the rows, which are the outputs, as the transpose of a matrix of its own."""
    if w.ndim != 2:
        yield from muon(w, grads, **args)
        return
    runs = [
        muon(half.T, [g.T for g in own], **args)
        for half, own in zip(np.split(w, 2), np.split(grads, 2, 1), strict=True)
    ]
    yield from (np.concatenate([x.T for x in both]) for both in zip(*runs, strict=True))


def muon_of_a_wide_model(w, grads, learning_rate, beta) -> Run:
    """Yang et al. 2023: √(2 / 4) of the step for the base shape, (1, 1), of which `muon` takes √4 for (4, 2)."""
    rate = learning_rate * (np.sqrt(2 / 4) / np.sqrt(4) if w.ndim == 2 else 1)
    yield from muon(w, grads, rate, beta, consistent_rms=0.2)


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


def dion2(w, grads, learning_rate, momentum=0.95, fraction=0.25, weight_decay=0.0) -> Run:
    """Ahn et al. 2025, algorithm 1, along the shorter side, with the lines of the largest sums."""
    if w.ndim != 2:
        yield from adamw(w, grads, learning_rate, weight_decay=0.0)
        return
    tall = w.shape[0] >= w.shape[1]
    m, scale = np.zeros_like(w), np.sqrt(w.shape[1] / w.shape[0])
    for g in grads:
        m = m + g
        lines, u = (m.T if tall else m).copy(), np.zeros_like(m.T if tall else m)
        sums = np.sum(np.abs(lines), axis=1)
        chosen = np.argsort(-sums)[: int(np.ceil(fraction * len(sums)))]
        u[chosen] = quintic(lines[chosen])
        lines[chosen] *= momentum
        m = lines.T if tall else lines
        w = w - learning_rate * (scale * (u.T if tall else u) + weight_decay * w)
        yield w


def nordion2(w, grads, learning_rate, momentum=0.95, b2=0.95, fraction=0.25, weight_decay=0.0) -> Run:
    """The same for columns, with the norms of NorMuon, Li et al. 2025."""
    if w.ndim != 2:
        yield from adamw(w, grads, learning_rate, weight_decay=0.0)
        return
    m, v, scale = np.zeros_like(w), np.zeros(w.shape[1]), np.sqrt(w.shape[1] / w.shape[0])
    for g in grads:
        m = m + g
        chosen = np.argsort(-np.sum(np.abs(m), axis=0))[: int(np.ceil(fraction * w.shape[1]))]
        o = quintic(m[:, chosen])
        v[chosen] = b2 * v[chosen] + (1 - b2) * np.mean(o**2, axis=0)
        u = np.zeros_like(w)
        u[:, chosen] = o / (np.sqrt(v[chosen]) + 1e-8)
        m[:, chosen] *= momentum
        w = w - learning_rate * (scale * np.linalg.norm(o) * u / np.linalg.norm(u) + weight_decay * w)
        yield w


def muonbp(w, grads, learning_rate, blocks, period=5, block_scale=1.0, beta=0.95, weight_decay=0.0) -> Run:
    """Khaled et al. 2025, algorithm 1, with steps of one root mean square; the blocks are rows."""
    if w.ndim != 2:
        yield from adamw(w, grads, learning_rate, weight_decay=0.0)
        return
    m = np.zeros_like(w)
    for t, g in enumerate(grads):
        m = beta * m + (1 - beta) * g
        if t % period == 0:
            u = 0.2 * np.sqrt(max(w.shape)) * quintic(m)
        else:
            parts = [m] if blocks is None else np.split(m, blocks.reduction_blocks)
            u = np.concatenate([block_scale * 0.2 * np.sqrt(max(x.shape)) * quintic(x) for x in parts])
        w = w - learning_rate * (u + weight_decay * w)
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
