"""The optimizers as their papers write them: slow, in float64, one leaf at a time.

Each is a generator: from a weight and its gradients, the weight after every step. The arguments have the
names and, written down a second time, the defaults of the optimizer they stand beside.
"""

from collections.abc import Iterable, Iterator

import numpy as np

Run = Iterator[np.ndarray]


def sgd(w, grads: Iterable, learning_rate, momentum=None, nesterov=False) -> Run:
    """Polyak 1964; Sutskever et al. 2013, in the form t = g + momentum·t."""
    mu, t = momentum or 0.0, np.zeros_like(w)
    for g in grads:
        t = g + mu * t
        w = w - learning_rate * (g + mu * t if nesterov else t)
        yield w


def adam(w, grads, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, nesterov=False) -> Run:
    """Kingma & Ba 2014, algorithm 1; Dozat 2016 for nesterov."""
    yield from _adam(w, grads, learning_rate, 0.0, b1, b2, eps, eps_root, nesterov)


def adamw(w, grads, learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-4) -> Run:
    """Loshchilov & Hutter 2017, algorithm 2, with the schedule multiplier η and α as one rate."""
    yield from _adam(w, grads, learning_rate, weight_decay, b1, b2, eps, 0.0, False)


def _adam(w, grads, learning_rate, decay, b1, b2, eps, eps_root, nesterov) -> Run:
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        if nesterov:
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        w = w - learning_rate * (m_hat / (np.sqrt(v_hat + eps_root) + eps) + decay * w)
        yield w


def adam_eps_hat(w, grads, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_hat=True) -> Run:
    """Kingma & Ba 2014, the reordered form at the end of section 2, with ε̂."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        alpha = learning_rate * np.sqrt(1 - b2**t) / (1 - b1**t)
        w = w - alpha * m / (np.sqrt(v) + eps)
        yield w


def amsgrad(
    w, grads, learning_rate, b1=0.9, b2=0.999, eps=1e-8, bias_correction_mu=True, bias_correction_nu=True
) -> Run:
    """Reddi, Kale & Kumar 2018, algorithm 2, the moments corrected as in Adam."""
    m, v, v_max = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = m / (1 - b1**t) if bias_correction_mu else m
        v_max = np.maximum(v_max, v / (1 - b2**t) if bias_correction_nu else v)
        w = w - learning_rate * m_hat / (np.sqrt(v_max) + eps)
        yield w


def rmsprop(
    w,
    grads,
    learning_rate,
    decay=0.9,
    eps=1e-8,
    initial_scale=0.0,
    eps_in_sqrt=True,
    centered=False,
    momentum=None,
    nesterov=False,
    bias_correction=False,
) -> Run:
    """Hinton 2012, lecture 6e; Graves 2013, equations 38 to 41, for centered; the rate inside the momentum."""
    m, v = np.zeros_like(w), np.full_like(w, initial_scale)
    mu, trace = momentum or 0.0, np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        v = decay * v + (1 - decay) * g**2
        m = decay * m + (1 - decay) * g if centered else m
        weight = 1 - decay**t if bias_correction else 1.0
        variance = v / weight - (m / weight) ** 2
        root = np.sqrt(variance + eps) if eps_in_sqrt else np.sqrt(variance) + eps
        step = learning_rate * g / root
        trace = step + mu * trace
        w = w - (step + mu * trace if nesterov else trace)
        yield w


def adagrad(w, grads, learning_rate, initial_accumulator_value=0.1, eps=1e-7) -> Run:
    """Duchi, Hazan & Singer 2011, figure 1, the diagonal form."""
    s = np.full_like(w, initial_accumulator_value)
    for g in grads:
        s = s + g**2
        w = w - learning_rate * g / np.sqrt(s + eps)
        yield w


def lion(w, grads, learning_rate, b1=0.9, b2=0.99, weight_decay=1e-3) -> Run:
    """Chen et al. 2023, program 1."""
    m = np.zeros_like(w)
    for g in grads:
        c = np.sign(b1 * m + (1 - b1) * g)
        m = b2 * m + (1 - b2) * g
        w = w - learning_rate * (c + weight_decay * w)
        yield w


def adamax(w, grads, learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, eps_in_max=True) -> Run:
    """Kingma & Ba 2014, algorithm 2, with an ε in either place."""
    m, u = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        u = np.maximum(b2 * u, abs(g) + eps if eps_in_max else abs(g))
        step = m / (1 - b1**t) / (u if eps_in_max else u + eps)
        w = w - learning_rate * (step + weight_decay * w)
        yield w


def nadam(w, grads, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0) -> Run:
    """Adam with nesterov."""
    yield from _adam(w, grads, learning_rate, 0.0, b1, b2, eps, eps_root, True)


def nadamw(w, grads, learning_rate, weight_decay=1e-4) -> Run:
    """AdamW with nesterov."""
    yield from _adam(w, grads, learning_rate, weight_decay, 0.9, 0.999, 1e-8, 0.0, True)


def dozat(w, grads, learning_rate, b1=0.9, b2=0.999, eps=1e-7, schedule_decay=0.004) -> Run:
    """Dozat 2016, algorithm 8 with the schedule of μ, and b1 in the mean."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    mu = [b1 * (1 - 0.5 * 0.96 ** (schedule_decay * t)) for t in range(1, len(grads) + 2)]
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_bar = (1 - mu[t - 1]) * g / (1 - np.prod(mu[:t])) + mu[t] * m / (1 - np.prod(mu[: t + 1]))
        w = w - learning_rate * m_bar / (np.sqrt(v / (1 - b2**t)) + eps)
        yield w


def adadelta(w, grads, learning_rate=1.0, rho=0.9, eps=1e-6, weight_decay=0.0) -> Run:
    """Zeiler 2012, algorithm 1, with a learning rate."""
    of_g, of_x = np.zeros_like(w), np.zeros_like(w)
    for g in grads:
        g = g + weight_decay * w
        of_g = rho * of_g + (1 - rho) * g**2
        x = -np.sqrt(of_x + eps) / np.sqrt(of_g + eps) * g
        of_x = rho * of_x + (1 - rho) * x**2
        w = w + learning_rate * x
        yield w


def ftrl(
    w,
    grads,
    learning_rate,
    learning_rate_power=-0.5,
    initial_accumulator_value=0.1,
    l1=0.0,
    l2=0.0,
    l2_shrinkage=0.0,
    beta=0.0,
) -> Run:
    """McMahan et al. 2013, algorithm 1, for any power and with half the paper's l2."""
    z, n = np.zeros_like(w), np.full_like(w, initial_accumulator_value)
    for g in grads:
        sigma = ((n + g**2) ** -learning_rate_power - n**-learning_rate_power) / learning_rate
        z = z + g + 2 * l2_shrinkage * w - sigma * w
        n = n + g**2
        slope = (beta + n**-learning_rate_power) / learning_rate + 2 * l2
        w = np.where(abs(z) <= l1, 0.0, -(z - np.sign(z) * l1) / slope)
        yield w
