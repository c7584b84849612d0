"""References, as in `references.py`, for rules that precondition the axes of a leaf with matrices."""

import numpy as np

from .references import Run


def apply(a, x, k):
    """The matrix a along axis k of x."""
    return np.moveaxis(np.tensordot(a, x, (1, k)), 0, k)


def unfold(x, k):
    return np.moveaxis(x, k, 0).reshape(x.shape[k], -1)


def soap(
    w,
    grads,
    learning_rate,
    b1=0.95,
    b2=0.95,
    shampoo_beta=None,
    eps=1e-8,
    weight_decay=0.01,
    precondition_frequency=10,
    max_precond_dim=10000,
    precondition_1d=False,
) -> Run:
    """Vyas et al. 2024, algorithms 3 and 4, m in the original space; the first gradient only makes the basis."""
    beta = b2 if shampoo_beta is None else shampoo_beta
    axes = [k for k in range(w.ndim) if w.shape[k] <= max_precond_dim and w.ndim + precondition_1d > 1]
    gg = {k: np.zeros((w.shape[k],) * 2) for k in axes}
    q = {k: np.eye(w.shape[k]) for k in axes}
    m, v = np.zeros_like(w), np.zeros_like(w)

    def into(x):
        for k in axes:
            x = apply(q[k].T, x, k)
        return x

    for t, g in enumerate(grads):
        u = np.zeros_like(w)
        if t:
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * into(g) ** 2
            u = into(m) / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
            for k in axes:
                u = apply(q[k], u, k)
        w = w - learning_rate * (u + weight_decay * w)
        yield w
        for k in axes:
            gg[k] = beta * gg[k] + (1 - beta) * unfold(g, k) @ unfold(g, k).T
            if t == 0:
                q[k] = np.linalg.eigh(gg[k])[1][:, ::-1]
            elif t % precondition_frequency == 0:
                order = np.argsort(-np.diag(q[k].T @ gg[k] @ q[k]))
                v = np.take(v, order, axis=k)
                q[k] = np.linalg.qr(gg[k] @ q[k][:, order])[0]
