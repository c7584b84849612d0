"""References, as in `references.py`, for rules that find their own step size: most join all leaves in one vector."""

from collections.abc import Callable

import numpy as np

from .references import Run


def joint(reference: Callable[..., Run]) -> Callable[..., Run]:
    """Marks a reference that wants all leaves as one vector."""
    vars(reference)["joint"] = True
    return reference


@joint
def prodigy(
    w,
    grads,
    learning_rate=1.0,
    betas=(0.9, 0.999),
    beta3=None,
    eps=1e-8,
    estim_lr0=1e-6,
    estim_lr_coef=1.0,
    weight_decay=0.0,
    safeguard_warmup=False,
) -> Run:
    """Mishchenko & Defazio 2023, algorithm 4, r and s over d₀, with Adam's bias correction and decoupled decay."""
    (b1, b2), b3 = betas, np.sqrt(betas[1]) if beta3 is None else beta3
    start, d, r = w, estim_lr0, 0.0
    m, v, s = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        rate = d * learning_rate * np.sqrt(1 - b2**t) / (1 - b1**t)
        m = b1 * m + (1 - b1) * d * g
        v = b2 * v + (1 - b2) * d**2 * g**2
        r = b3 * r + d / estim_lr0 * rate * np.sum(g * (start - w))
        s = b3 * s + d / estim_lr0 * (d if safeguard_warmup else rate) * g
        d = max(d, estim_lr_coef * r / np.sum(abs(s)))
        w = w - rate * (m / (np.sqrt(v) + d * eps) + weight_decay * w)
        yield w


@joint
def dog(w, grads, learning_rate=1.0, init_step=("heuristic", 1e-6), eps=1e-8, weight_decay=0.0) -> Run:
    """Ivgi, Hinder & Carmon 2023, equation 1."""
    start, total = w, 0.0
    kind, size = init_step
    r = {"distance": size, "learning_rate": 0.0, "heuristic": size * (1 + np.sqrt(np.sum(w**2)))}[kind]
    for t, g in enumerate(grads):
        g = g + weight_decay * w
        total = total + np.sum(g**2)
        r = max(r, np.sqrt(np.sum((w - start) ** 2)))
        rate = size if t == 0 and kind == "learning_rate" else r / np.sqrt(total + eps)
        w = w - learning_rate * rate * g
        yield w


@joint
def dowg(w, grads, learning_rate=1.0, init_estim_sq_dist=None, eps=1e-4, weight_decay=0.0) -> Run:
    """Khaled, Mishchenko & Jin 2023, algorithm 1, with an ε."""
    start, v = w, 0.0
    r = eps if init_estim_sq_dist is None else init_estim_sq_dist
    for g in grads:
        g = g + weight_decay * w
        r = max(r, np.sum((w - start) ** 2))
        v = v + r * np.sum(g**2)
        w = w - learning_rate * r / (np.sqrt(v) + eps) * g
        yield w


@joint
def dadapt_adamw(w, grads, learning_rate=1.0, betas=(0.9, 0.999), eps=1e-8, estim_lr0=1e-6, weight_decay=0.0) -> Run:
    """Defazio & Mishchenko 2023, algorithm 5, with decoupled decay."""
    b1, b2 = betas
    b3, d, r = np.sqrt(b2), estim_lr0, 0.0
    m, v, s = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        rate = d * learning_rate * np.sqrt(1 - b2**t) / (1 - b1**t)
        r = b3 * r + (1 - b3) * rate * np.sum(g * s / (np.sqrt(v) + eps))
        v = b2 * v + (1 - b2) * g**2
        m = b1 * m + (1 - b1) * rate * g
        s = b3 * s + (1 - b3) * rate * g
        d = max(d, r / ((1 - b3) * np.sum(abs(s))))
        w = w - m / (np.sqrt(v) + eps) - weight_decay * rate * w
        yield w


def half_square(w):
    """The loss that momo's cases are told of."""
    return 0.5 * np.sum(w**2)


def _momo(w, grads, rate, beta, low, decay, adapt, b2=None, eps=0.0) -> Run:
    d, v, f, gamma, floor = np.zeros_like(w), np.zeros_like(w), 0.0, 0.0, low
    for t, g in enumerate(grads, 1):
        if b2 is None:
            b, rho, scale = (beta if t > 1 else 0.0), 1.0, 1.0
        else:
            b, rho = beta, 1 - beta**t
            v = b2 * v + (1 - b2) * g**2
            scale = np.sqrt(v / (1 - b2**t)) + eps
        d = b * d + (1 - b) * g
        f = b * f + (1 - b) * half_square(w)
        gamma = b * gamma + (1 - b) * np.sum(g * w)
        dot, norm = np.sum(d * w), np.sum(d**2 / scale)
        if adapt:
            cap = (1 + rate * decay) * (f - gamma) + dot
            if cap < (1 + rate * decay) * rho * low:
                low = max(cap / (2 * (1 + rate * decay) * rho), floor)
        tau = min(rate / rho, max((1 + rate * decay) * (f - gamma - rho * low) + dot, 0) / norm)
        if adapt:
            low = max((f + dot - gamma - 0.5 * tau * norm) / rho, floor)
        w = (w - tau * d / scale) / (1 + rate * decay)
        yield w


@joint
def momo(w, grads, learning_rate=1.0, beta=0.9, lower_bound=0.0, weight_decay=0.0, adapt_lower_bound=False) -> Run:
    """Schaipp et al. 2023, algorithm 1 (and 3 with a lower bound that adapts)."""
    yield from _momo(w, grads, learning_rate, beta, lower_bound, weight_decay, adapt_lower_bound)


@joint
def momo_adam(
    w,
    grads,
    learning_rate=0.01,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    lower_bound=0.0,
    weight_decay=0.0,
    adapt_lower_bound=False,
) -> Run:
    """Schaipp et al. 2023, algorithm 4."""
    yield from _momo(w, grads, learning_rate, b1, lower_bound, weight_decay, adapt_lower_bound, b2, eps)


def cocob(w, grads, learning_rate=1.0, alpha=100.0, eps=1e-8, weight_decay=0.0) -> Run:
    """Orabona & Tommasi 2017, algorithm 2."""
    start = w
    scale, total, reward, theta = np.full_like(w, eps), np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for g in grads:
        g = learning_rate * (g + weight_decay * w)
        scale = np.maximum(scale, abs(g))
        total = total + abs(g)
        reward = np.maximum(reward - (w - start) * g, 0)
        theta = theta - g
        w = start + theta / (scale * np.maximum(total + scale, alpha * scale)) * (scale + reward)
        yield w


@joint
def mechanize(w, grads, learning_rate, weight_decay=0.01, eps=1e-8, s_init=1e-6, num_betas=6) -> Run:
    """Cutkosky, Defazio & Mehta 2023, algorithm 1, around gradient descent."""
    betas = 1 - 0.1 ** np.arange(1, num_betas + 1)
    start, delta = w, np.zeros_like(w)
    r, m, v, s = (np.zeros(num_betas) for _ in range(4))
    for g in grads:
        norms = [np.sqrt(np.sum(x**2)) for x in (g, w)]
        h = np.sum(delta * (g + weight_decay * np.sum(s) * norms[0] / (norms[1] + eps) * w))
        r = betas * r - s * np.clip(h, -m, m)
        m = np.maximum(betas * m, abs(h) + eps)
        v = betas**2 * v + h**2
        s = (s_init / num_betas * m + np.maximum(r, 0)) / (np.sqrt(v) + eps)
        delta = delta - learning_rate * g
        w = start + np.sum(s) * delta
        yield w


def ademamix(
    w, grads, learning_rate, b1=0.9, b2=0.999, b3=0.9999, alpha=5.0, eps=1e-8, eps_root=0.0, weight_decay=0.0
) -> Run:
    """Pagliardini, Ablin & Grangier 2024, algorithm 1, b3 and α held."""
    m1, m2, v = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m1 = b1 * m1 + (1 - b1) * g
        m2 = b3 * m2 + (1 - b3) * g
        v = b2 * v + (1 - b2) * g**2
        u = (m1 / (1 - b1**t) + alpha * m2) / (np.sqrt(v / (1 - b2**t) + eps_root) + eps)
        w = w - learning_rate * (u + weight_decay * w)
        yield w


def simplified_ademamix(
    w, grads, learning_rate, b1=0.99, b2=0.95, alpha=0.0, eps=1e-8, eps_root=0.0, weight_decay=0.0
) -> Run:
    """Morwani et al. 2025, the simplified rule: a sum of gradients and the last one."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m = b1 * m + g
        v = b2 * v + (1 - b2) * g**2
        u = (m + alpha * g) / (np.sqrt(v / (1 - b2**t) + eps_root) + eps)
        w = w - learning_rate * (u + weight_decay * w)
        yield w


def adopt(w, grads, learning_rate, b1=0.9, b2=0.9999, eps=1e-6, nesterov=False, use_clipping=True) -> Run:
    """Taniguchi et al. 2024, algorithm 2: v of the step before; the first step only starts v."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads):
        if t == 0:
            v = g**2
        else:
            x = g / np.maximum(np.sqrt(v), eps)
            x = np.clip(x, -(t**0.25), t**0.25) if use_clipping else x
            m = b1 * m + (1 - b1) * x
            w = w - learning_rate * (b1 * m + (1 - b1) * x if nesterov else m)
            v = b2 * v + (1 - b2) * g**2
        yield w


@joint
def dpsgd(w, grads, learning_rate, l2_norm_clip, noise_multiplier, seed, momentum=0.0, nesterov=False) -> Run:
    """Abadi et al. 2016, algorithm 1, with batches of one example and no noise."""
    assert noise_multiplier == 0
    m = np.zeros_like(w)
    for g in grads:
        g = g / max(1.0, np.sqrt(np.sum(g**2)) / l2_norm_clip)
        m = momentum * m + g
        w = w - learning_rate * (momentum * m + g if nesterov else m)
        yield w
