"""The task of characters.py: a transformer of 0.25M params that predicts the text that ships with Python."""

from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np

CONTEXT, WIDTH, HEADS, LAYERS = 64, 96, 4, 2


def load(windows: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns nine tenths of the text, unseen windows of the last tenth, and the number of distinct characters."""
    text = "\n\n".join(topics.values()).encode()
    cut = len(text) * 9 // 10
    seen = text[:cut]
    last = [text[i : i + CONTEXT + 1] for i in range(cut, len(text) - CONTEXT, CONTEXT)]
    unseen = [window for window in last if window[:CONTEXT] not in seen]
    codes = {byte: code for code, byte in enumerate(sorted(set(text)))}
    chosen = unseen[:: max(len(unseen) // windows, 1)][:windows]
    return np.array([codes[b] for b in seen]), np.array([[codes[b] for b in w] for w in chosen]), len(codes)


def batches(seed: int, text: np.ndarray, size: int, steps: int) -> np.ndarray:
    """Returns windows from random places in the text, shape (steps, size, CONTEXT + 1)."""
    starts = np.random.default_rng(seed).integers(len(text) - CONTEXT, size=(steps, size, 1))
    return text[starts + np.arange(CONTEXT + 1)]


def init(seed: int, characters: int) -> dict:
    """Returns params: matrices with variance 1 / inputs, smaller if they add to the residual stream; norms of 1."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, deviation: float | None = None) -> jax.Array:
        return jnp.array(rng.normal(0, deviation or rows**-0.5, (rows, columns)), jnp.float32)

    def block() -> dict:
        inner = {name: matrix(WIDTH, WIDTH) for name in ("query", "key", "value")}
        out = (2 * LAYERS * WIDTH) ** -0.5
        return inner | {
            "attention_out": matrix(WIDTH, WIDTH, out),
            "mlp_in": matrix(WIDTH, 4 * WIDTH),
            "mlp_out": matrix(4 * WIDTH, WIDTH, out / 2),
            "attention_norm": jnp.ones(WIDTH),
            "mlp_norm": jnp.ones(WIDTH),
        }

    return {
        "embedding": matrix(characters, WIDTH, 0.1),
        "positions": matrix(CONTEXT, WIDTH, 0.1),
        "blocks": [block() for _ in range(LAYERS)],
        "norm": jnp.ones(WIDTH),
        "head": matrix(WIDTH, characters),
    }


def logits(params: dict, characters: jax.Array) -> jax.Array:
    x = params["embedding"][characters] + params["positions"]
    for block in params["blocks"]:
        h = normed(x, block["attention_norm"])
        q, k, v = ((h @ block[name]).reshape(*h.shape[:2], HEADS, -1) for name in ("query", "key", "value"))
        x += jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(h.shape) @ block["attention_out"]
        x += jax.nn.relu(normed(x, block["mlp_norm"]) @ block["mlp_in"]) @ block["mlp_out"]
    return normed(x, params["norm"]) @ params["head"]


def normed(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def loss(params: dict, windows: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy, in nats per character, of predicting each character from those before it."""
    scores = jax.nn.log_softmax(logits(params, windows[:, :-1]))
    return -jnp.take_along_axis(scores, windows[:, 1:, None], axis=-1).mean()
