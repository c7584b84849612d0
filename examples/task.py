"""The task of the examples: scikit-learn's handwritten digits, 1797 images of 8 x 8, and a small network."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


@dataclass
class Digits:
    """Images as rows of 64 numbers in [0, 1] and their classes 0 to 9: 1437 to train on, 360 to test on."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    @classmethod
    def load(cls) -> "Digits":
        images, classes = load_digits(return_X_y=True)
        images = (images / 16).astype(np.float32)
        x, x_test, y, y_test = train_test_split(images, classes, test_size=0.2, stratify=classes, random_state=0)
        return cls((x, y), (x_test, y_test))

    def batches(self, epochs: int, size: int = 64) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns the same batches at every call, so that runs can be compared step by step."""
        rng, (x, y) = np.random.default_rng(0), self.train
        orders = [rng.permutation(len(x)) for _ in range(epochs)]
        return [(x[o[i : i + size]], y[o[i : i + size]]) for o in orders for i in range(0, len(x) - size + 1, size)]


def init(key: jax.Array, channels: int = 32) -> dict:
    """Returns params of a 3 x 3 convolution and a dense layer, as in He et al. 2015, arXiv:1502.01852."""
    keys, shapes = jax.random.split(key), {"conv": (9, channels), "out": (64 * channels, 10)}
    return {
        name: {"kernel": jax.random.normal(k, shape) * np.sqrt(2 / shape[0]), "bias": jnp.zeros(shape[1])}
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def logits(params: dict, images: jax.Array) -> jax.Array:
    padded = jnp.pad(images.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    patches = jnp.stack([padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)], axis=-1)
    maps = jax.nn.relu(patches @ params["conv"]["kernel"] + params["conv"]["bias"])
    return maps.reshape(len(images), -1) @ params["out"]["kernel"] + params["out"]["bias"]


def loss(params: dict, images: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of a batch."""
    scores = jax.nn.log_softmax(logits(params, images))
    return -jnp.take_along_axis(scores, classes[:, None], axis=1).mean()


def accuracy(params: dict, images: jax.Array, classes: jax.Array) -> float:
    return float((logits(params, images).argmax(axis=1) == classes).mean())
