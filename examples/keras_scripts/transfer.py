"""Transfer learning as in Keras's guide: trains a head on a frozen base, then fine-tunes both at rates of their own.

What a port changes: only the import, and that a loss is a function, for `make_train_step`. `trainable = False` is set
on the base's variables; a compiled step follows it. The subclass of Adam is what one writes for Keras 3.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from functional_opt import keras


class LayerwiseAdam(keras.optimizers.Adam):
    """Adam with a rate for each part of the model: factors of the learning rate, by the first part of the path."""

    def __init__(self, learning_rate=1e-3, factors=None, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.factors = factors or {}

    def update_step(self, gradient, variable, learning_rate):
        factor = self.factors.get(variable.path.split("/")[0], 1.0)
        super().update_step(gradient, variable, learning_rate * factor)

    def get_config(self):
        return super().get_config() | {"factors": self.factors}


def dense(name, inputs, outputs, rng):
    kernel = rng.normal(0, (2 / inputs) ** 0.5, (inputs, outputs)).astype(np.float32)
    return [keras.Variable(kernel, name=f"{name}/kernel"), keras.Variable(jnp.zeros(outputs), name=f"{name}/bias")]


def features(base, images):
    for kernel, bias in zip(base[::2], base[1::2], strict=True):
        images = jax.nn.relu(images @ kernel + bias)
    return images


def classify(base, head, images):
    kernel, bias = head
    return features(base, images) @ kernel + bias


def cross_entropy(logits, classes):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), classes[:, None], axis=1).mean()


def main(steps=300):
    """Trains each of three phases for so many steps. Returns the accuracies, and the base after each phase."""
    rng, data = np.random.default_rng(0), load_digits()
    images, classes = (data.data / 16).astype(np.float32), data.target
    old, new = classes < 5, classes >= 5  # the base learns 0 to 4; then there are 100 images of 5 to 9
    new_images, new_classes = images[new], classes[new] - 5
    few, rest = slice(0, 100), slice(100, None)

    base = dense("base/dense_0", 64, 128, rng) + dense("base/dense_1", 128, 64, rng)
    old_head, head = dense("old_head", 64, 5, rng), dense("head", 64, 5, rng)

    def train(optimizer, head, images, classes):
        """Trains what is trainable and returns the base's values."""
        step = optimizer.make_train_step(lambda x, y: cross_entropy(classify(base, head, x), y))
        for _ in range(steps):
            chosen = rng.integers(len(images), size=32)
            step(images[chosen], classes[chosen])
        return [v.numpy() for v in base]

    def accuracy():
        return float((classify(base, head, new_images[rest]).argmax(axis=1) == new_classes[rest]).mean())

    pretrained = train(keras.optimizers.Adam(3e-3), old_head, images[old], classes[old])
    accuracies = [accuracy()]

    for variable in base:
        variable.trainable = False
    frozen = train(keras.optimizers.Adam(3e-3), head, new_images[few], new_classes[few])
    accuracies.append(accuracy())

    for variable in base:
        variable.trainable = True
    # or MultiOptimizer(OptimizerMap(Adam(1e-3), {"base/.*": Adam(1e-4)}))
    optimizer = LayerwiseAdam(1e-3, factors={"base": 0.1})
    tuned = train(optimizer, head, new_images[few], new_classes[few])
    accuracies.append(accuracy())
    moved = max(np.abs(a - b).max() for a, b in zip(frozen, tuned, strict=True))
    print("accuracy on new digits: untrained {:.1%}, frozen base {:.1%}, fine-tuned {:.1%}".format(*accuracies))
    print(f"fine-tuning moved the base by at most {moved:.4f}, the frozen phase by nothing")
    return accuracies, pretrained, frozen, tuned


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
