"""References, as in `references.py`, for the optimizers of `cases_classic.py`."""

import numpy as np

from .references import Run


def radam(
    w, grads, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, threshold=5.0, nesterov=False, eps_hat=False
) -> Run:
    """Liu et al. 2019, algorithm 2."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    limit = 2 / (1 - b2) - 1
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = m / (1 - b1**t)
        if nesterov:
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        rho = limit - 2 * t * b2**t / (1 - b2**t)
        if rho >= threshold:
            r = np.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
            added = eps / np.sqrt(1 - b2**t) if eps_hat else eps
            m_hat = r * m_hat / (np.sqrt(v / (1 - b2**t) + eps_root) + added)
        w = w - learning_rate * m_hat
        yield w


def adabelief(w, grads, learning_rate, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16, nesterov=False) -> Run:
    """Zhuang et al. 2020, algorithm 2."""
    m, s = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) ** 2 + eps_root
        m_hat = m / (1 - b1**t)
        if nesterov:
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        w = w - learning_rate * m_hat / (np.sqrt(s / (1 - b2**t)) + eps)
        yield w


def adan(w, grads, learning_rate, b1=0.98, b2=0.92, b3=0.99, eps=1e-8, eps_root=1e-8, weight_decay=0.0) -> Run:
    """Xie et al. 2022, algorithm 1 with bias correction, β = 1 − b, and AdamW's decay."""
    beta1, beta2, beta3 = 1 - b1, 1 - b2, 1 - b3
    m, v, n, last = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w), None
    for t, g in enumerate(grads, 1):
        d = np.zeros_like(w) if last is None else g - last
        m = (1 - beta1) * m + beta1 * g
        v = (1 - beta2) * v + beta2 * d
        n = (1 - beta3) * n + beta3 * (g + (1 - beta2) * d) ** 2
        u = m / (1 - b1**t) + (1 - beta2) * v / (1 - b2**t)
        w = w - learning_rate * (u / (np.sqrt(n / (1 - b3**t) + eps_root) + eps) + weight_decay * w)
        last = g
        yield w


def yogi(w, grads, learning_rate, b1=0.9, b2=0.999, eps=1e-3) -> Run:
    """Zaheer et al. 2018, algorithm 2, the moments corrected as in Adam, v from 1e-6."""
    m, v = np.zeros_like(w), np.full_like(w, 1e-6)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = v - (1 - b2) * np.sign(v - g**2) * g**2
        w = w - learning_rate * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        yield w


def novograd(w, grads, learning_rate, b1=0.9, b2=0.25, eps=1e-6, eps_root=0.0, weight_decay=0.0) -> Run:
    """Ginsburg et al. 2019, algorithm 1, a layer being a leaf."""
    m, v = np.zeros_like(w), None
    for g in grads:
        square = np.sum(g**2)
        v = square if v is None else b2 * v + (1 - b2) * square
        m = b1 * m + (g / (np.sqrt(v + eps_root) + eps) + weight_decay * w)
        w = w - learning_rate * m
        yield w


def fromage(w, grads, learning_rate, min_norm=1e-6) -> Run:
    """Bernstein et al. 2020, algorithm 1; norms here are above min_norm."""
    for g in grads:
        w = w - learning_rate * g * np.sqrt(np.sum(w**2)) / np.sqrt(np.sum(g**2))
        w = w / np.sqrt(1 + learning_rate**2)
        yield w


def sm3(w, grads, learning_rate, momentum=0.9) -> Run:
    """Anil et al. 2019, algorithm SM3-II, the sets being the slices across each axis, with a mean over steps."""
    m, mu = np.zeros_like(w), [np.zeros(n) for n in w.shape or (1,)]
    for g in grads:
        v = np.zeros_like(w)
        for i in np.ndindex(w.shape):
            v[i] = min(a[j] for a, j in zip(mu, i or (0,), strict=True)) + g[i] ** 2
        mu = [np.array([v.take(j, axis).max() for j in range(n)]) for axis, n in enumerate(w.shape)] or [v[None]]
        m = momentum * m + (1 - momentum) * g / np.sqrt(v + 1e-8)
        w = w - learning_rate * m
        yield w


def rprop(w, grads, learning_rate, eta_minus=0.5, eta_plus=1.2, min_step_size=1e-6, max_step_size=50.0) -> Run:
    """Igel & Hüsken 2003, the rule for the step size of table 1, Rprop⁻ with the gradient forgotten at a turn."""
    size, last = np.full_like(w, learning_rate), np.zeros_like(w)
    for g in grads:
        size = np.where(g * last > 0, np.minimum(size * eta_plus, max_step_size), size)
        size = np.where(g * last < 0, np.maximum(size * eta_minus, min_step_size), size)
        last = np.where(g * last < 0, 0.0, g)
        w = w - np.sign(last) * size
        yield w


def sign_sgd(w, grads, learning_rate) -> Run:
    """Bernstein et al. 2018, equation 1."""
    for g in grads:
        w = w - learning_rate * np.sign(g)
        yield w


def signum(w, grads, learning_rate, beta=0.9) -> Run:
    """Bernstein et al. 2018, algorithm 2."""
    m = np.zeros_like(w)
    for g in grads:
        m = beta * m + (1 - beta) * g
        w = w - learning_rate * np.sign(m)
        yield w


def optimistic_gradient_descent(w, grads, learning_rate, alpha=1.0, beta=1.0) -> Run:
    """Mokhtari, Ozdaglar & Pattathil 2019, the generalized form, with x₋₁ = x₀."""
    last = None
    for g in grads:
        last = g if last is None else last
        w = w - learning_rate * alpha * g - learning_rate * beta * (g - last)
        last = g
        yield w


def optimistic_adam(w, grads, learning_rate, optimism=None, b1=0.9, b2=0.999, eps=1e-8, nesterov=True) -> Run:
    """Daskalakis et al. 2017, algorithm 1, with a weight for the correction and Dozat's look ahead."""
    m, v, last = np.zeros_like(w), np.zeros_like(w), None
    optimism = learning_rate if optimism is None else optimism
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = m / (1 - b1**t)
        if nesterov:
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        a = m_hat / (np.sqrt(v / (1 - b2**t)) + eps)
        last = a if last is None else last
        w = w - learning_rate * a - optimism * (a - last)
        last = a
        yield w


def optimistic_adam_v2(w, grads, learning_rate, alpha=1.0, beta=1.0) -> Run:
    """The same, with one rate for both."""
    yield from optimistic_adam(w, grads, learning_rate * alpha, learning_rate * beta)
