"""References, as in `references.py`, for rules that precondition the axes of a leaf with matrices."""

import itertools
import math

import jax
import numpy as np

from .references import Run


def apply(a, x, k):
    """The matrix a along axis k of x."""
    return np.moveaxis(np.tensordot(a, x, (1, k)), 0, k)


def unfold(x, k):
    return np.moveaxis(x, k, 0).reshape(x.shape[k], -1)


def into(x, q):
    for k in q:
        x = apply(q[k].T, x, k)
    return x


def out_of(x, q):
    for k in q:
        x = apply(q[k], x, k)
    return x


def soap(w, grads, learning_rate, weight_decay=0.01, **rule) -> Run:
    for u in soap_directions(w, grads, **rule):
        w = w - learning_rate * (u + weight_decay * w)
        yield w


def soap_directions(
    w,
    grads,
    b1=0.95,
    b2=0.95,
    shampoo_beta=None,
    eps=1e-8,
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
    for t, g in enumerate(grads):
        u = np.zeros_like(w)
        if t:
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * into(g, q) ** 2
            u = out_of(into(m, q) / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps), q)
        yield u
        for k in axes:
            gg[k] = beta * gg[k] + (1 - beta) * unfold(g, k) @ unfold(g, k).T
            if t == 0:
                q[k] = np.linalg.eigh(gg[k])[1][:, ::-1]
            elif t % precondition_frequency == 0:
                order = np.argsort(-np.diag(q[k].T @ gg[k] @ q[k]))
                v = np.take(v, order, axis=k)
                q[k] = np.linalg.qr(gg[k] @ q[k][:, order])[0]


def shampoo(
    w,
    grads,
    learning_rate,
    block_size=1024,
    beta2=0.999,
    eps=1e-6,
    grafting="adam",
    preconditioner_every=10,
    start_preconditioning_step=1,
    momentum=0.9,
    weight_decay=0.0,
    graft_eps=1e-8,
) -> Run:
    """Gupta et al. 2018, algorithms 1 and 2; Anil et al. 2020 for blocks and grafting."""
    corners = itertools.product(*(range(0, n, block_size) for n in w.shape)) if w.ndim > 1 else ()
    blocks = [tuple(slice(i, i + block_size) for i in corner) for corner in corners]
    decay, new = (1, 1) if beta2 is None else (beta2, 1 - beta2)
    matrices = {(b, k): 0.0 for b in range(len(blocks)) for k in range(w.ndim)}
    roots, v, m = {}, np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        corrected = 1 if beta2 is None else 1 - beta2**t
        rule = grafting
        if grafting == "none" and w.ndim < 2:
            rule = "adagrad" if beta2 is None else "adam"
        v = v + g**2 if rule == "adagrad" else decay * v + new * g**2
        scale = {"sgd": 1, "none": 1, "adam": np.sqrt(v / corrected) + graft_eps}.get(rule, np.sqrt(v) + graft_eps)
        d = u = g / scale
        for b, block in enumerate(blocks):
            for k in range(w.ndim):
                rows = unfold(g[block], k)
                matrices[b, k] = decay * matrices[b, k] + new * rows @ rows.T
        if blocks and t >= start_preconditioning_step:
            u = np.zeros_like(w)
            for b, block in enumerate(blocks):
                x = g[block]
                for k in range(w.ndim):
                    if (t - start_preconditioning_step) % preconditioner_every == 0:
                        values, vectors = np.linalg.eigh(matrices[b, k] / corrected)
                        roots[b, k] = vectors * (values + eps * values[-1]) ** (-0.5 / w.ndim) @ vectors.T
                    x = apply(roots[b, k], x, k)
                u[block] = x
            if grafting != "none":
                u = u * np.sqrt(np.sum(d**2) / np.sum(u**2))
        m = momentum * m + u
        w = w - learning_rate * (m + weight_decay * w)
        yield w


def probes(shape, seed):
    """The numbers that are drawn at each step: one for whether Q is fitted, and the probe."""
    key = jax.random.key(seed)
    while True:
        key, now = jax.random.split(key)
        draw, probe = jax.random.split(now)
        yield jax.random.uniform(draw, (), "float32"), np.asarray(jax.random.rademacher(probe, shape, "float32"))


def largest(a):
    """Li's lower bound of the largest eigenvalue."""
    x = a @ a[:, np.argmax(np.sum(a**2, axis=0))]
    return np.sqrt(np.sum((a @ x) ** 2) / np.sum(x**2))


def psgd_kron(
    w,
    grads,
    learning_rate,
    b1=0.9,
    weight_decay=0.0,
    preconditioner_update_probability=None,
    max_size_triangular=8192,
    min_ndim_triangular=2,
    momentum_into_precond_update=True,
    precond_lr=0.1,
    precond_init_scale=1.0,
    max_update_rms=1.1,
    key=0,
) -> Run:
    """Li 2015, the whitening criterion with triangular factors, never balanced; diagonal ones as matrices."""
    shape, m = w.shape or (1,), np.zeros_like(w)
    q = [np.eye(n) * precond_init_scale ** (1 / len(shape)) for n in shape]
    triangular = [len(shape) >= min_ndim_triangular and n <= max_size_triangular for n in shape]
    for t, (g, (draw, z)) in enumerate(zip(grads, probes(shape, key), strict=False), 1):
        m = b1 * m + (1 - b1) * g
        m_hat = np.reshape(m / (1 - b1**t), shape)
        p = preconditioner_update_probability
        if draw < (np.clip(np.exp(-0.001 * (t - 501)), 0.03, 1) if p is None else p):
            a, b = m_hat if momentum_into_precond_update else np.reshape(g, shape), z
            for k in range(len(shape)):
                a, b = apply(q[k], a, k), apply(np.linalg.inv(q[k]).T, b, k)
            for k in range(len(shape)):
                aa, bb = unfold(a, k) @ unfold(a, k).T, unfold(b, k) @ unfold(b, k).T
                step = np.triu(aa - bb) / largest(aa + bb)
                if not triangular[k]:
                    step = np.diag(np.diag(aa - bb)) / np.max(np.diag(aa + bb))
                q[k] = q[k] - precond_lr * step @ q[k]
        u = m_hat
        for k in range(len(shape)):
            u = apply(q[k].T @ q[k], u, k)
        if max_update_rms is not None:
            u = u * min(1, max_update_rms / np.sqrt(np.mean(u**2)))
        w = w - learning_rate * (np.reshape(u, w.shape) + weight_decay * w)
        yield w


def kl_factors(w, max_precond_dim, initial_eigenvalue):
    """S, Q and λ of each axis longer than 1, if there are two or more."""
    axes = [k for k in range(w.ndim) if w.shape[k] > 1]
    axes = axes if len(axes) > 1 else []
    q = {k: np.eye(w.shape[k]) for k in axes}
    gg = {k: np.zeros_like(q[k]) for k in axes if w.shape[k] <= max_precond_dim}
    return gg, q, {k: np.full(w.shape[k], initial_eigenvalue) for k in axes}


def along(x, k, ndim):
    return x.reshape([-1 if j == k else 1 for j in range(ndim)])


def kl_step(t, g, gg, q, lam, beta, precondition_frequency, max_scale):
    """Lin et al. 2025: S, Q and λ after step t, with whole inverses in place of what the fast code multiplies."""
    new = {}
    for k in q:
        n, m = g.shape[k], g.size // g.shape[k]
        x = g
        for j in q:
            if j != k and t:
                x = apply(q[j] / np.sqrt(lam[j]) @ q[j].T, x, j)
        now = unfold(x, k) @ unfold(x, k).T / m
        if k in gg:
            gg[k] = beta * gg[k] + (1 - beta) * now
        least = 1 / max(10, min(n, max_scale)) ** 2
        new[k] = np.maximum(beta * lam[k] + (1 - beta) * np.diag(q[k].T @ now @ q[k]), least) if t else lam[k]
    for k in gg:
        if t == 0:
            q[k] = np.linalg.eigh(gg[k])[1][:, ::-1]
        elif t % precondition_frequency == 0:
            q[k] = np.linalg.qr(gg[k] @ q[k])[0]
    lam.update(new)


def kl_shampoo(
    w,
    grads,
    learning_rate,
    b1=0.9,
    b2=0.98,
    eps=1e-8,
    weight_decay=0.01,
    precondition_frequency=10,
    max_precond_dim=10000,
    initial_eigenvalue=0.1,
    max_scale=4000.0,
) -> Run:
    """Lin et al. 2025, u from the factors of the step before; the first gradient only makes the bases."""
    gg, q, lam = kl_factors(w, max_precond_dim, initial_eigenvalue)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads):
        u = np.zeros_like(w)
        if t:
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            root = np.sqrt(math.prod(along(lam[k], k, w.ndim) for k in q) if q else v)
            u = out_of(into(m, q) / (root + eps), q)
        kl_step(t, g, gg, q, lam, b2, precondition_frequency, max_scale)
        w = w - learning_rate * (u + weight_decay * w)
        yield w


def kl_soap(
    w,
    grads,
    learning_rate,
    b1=0.9,
    b2=0.98,
    shampoo_beta=None,
    eps=1e-8,
    weight_decay=0.01,
    precondition_frequency=10,
    max_precond_dim=10000,
    initial_eigenvalue=0.1,
    max_scale=4000.0,
) -> Run:
    """Lin et al. 2025, m in the original space; the first gradient only makes the bases."""
    gg, q, lam = kl_factors(w, max_precond_dim, initial_eigenvalue)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads):
        u = np.zeros_like(w)
        if t:
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * into(g, q) ** 2
            u = out_of(into(m, q) / (np.sqrt(v) + eps), q)
        kl_step(t, g, gg, q, lam, b2 if shampoo_beta is None else shampoo_beta, precondition_frequency, max_scale)
        w = w - learning_rate * (u + weight_decay * w)
        yield w


def partner(r, t, xp=np):
    """A factor B, (r, r + 1), that turns with the number of steps done."""
    i, j = np.arange(r)[:, None], np.arange(r + 1)
    return np.eye(r, r + 1) + 0.3 * xp.cos(t + (i + 2 * j))


def half_of_lora_rite(b1=0.9, b2=0.999, eps=1e-6, escape=False):
    """Yen et al. 2024, algorithm 1, for one factor: a function of the gradient in the basis Q, and of Q and R⁻¹."""
    m = v = old = lost = 0.0
    t = 0

    def step(g, q, inverse):
        nonlocal m, v, old, lost, t
        t += 1
        b1_t, b2_t = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (b1, b2))
        p = q.T @ old if t > 1 else np.zeros((q.shape[1],) * 2)
        before = v if t > 1 else np.zeros_like(p)
        v = p @ before @ p.T
        if escape:
            values = [np.linalg.eigvalsh(x) for x in (before, v)]
            lost = b2_t * (lost + max(min(np.max(values[0] - values[1]), np.trace(before - v)), 0))
        v = b2_t * v + (1 - b2_t) * g.T @ g / len(g)
        values, vectors = np.linalg.eigh(v)
        s = g @ (vectors / (np.sqrt(np.maximum(values, 0) + lost) + eps)) @ vectors.T
        m = b1_t * (m @ p.T) + (1 - b1_t) * s if t > 1 else s
        old = q
        return m @ inverse.T

    return step


def lora_rite(w, grads, learning_rate, weight_decay=0.0, **rule) -> Run:
    a, step = w.reshape(-1, w.shape[-1] if w.ndim > 1 else 1), half_of_lora_rite(**rule)
    for t, g in enumerate(grads):
        q, r = np.linalg.qr(partner(a.shape[1], t).T)
        inverse = np.linalg.inv(r)
        a = a - learning_rate * (step(g.reshape(a.shape) @ inverse, q, inverse) + weight_decay * a)
        yield a.reshape(w.shape)
