"""A GAN with two optimizers and one compiled step, as in TensorFlow's DCGAN tutorial: learns to draw digits.

What a port changes: `tf.function` becomes `keras.function`; the two GradientTapes become two calls of
`keras.value_and_grad`, each with its loss as a function; `tf.random.normal` becomes JAX's, whose seed is a variable.
Losses, `apply_gradients` and the loop stay. The models are functions of variables here, in place of Keras layers.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from functional_opt import keras

BATCH_SIZE, NOISE_DIM = 64, 16


class Model:
    """Dense layers with leaky ReLUs between them."""

    def __init__(self, name, sizes, activation, rng):
        self.activation, self.trainable_variables = activation, []
        for i, (n, m) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            kernel = rng.normal(0, n**-0.5, (n, m)).astype(np.float32)
            self.trainable_variables.append(keras.Variable(kernel, name=f"{name}/dense_{i}/kernel"))
            self.trainable_variables.append(keras.Variable(jnp.zeros(m), name=f"{name}/dense_{i}/bias"))

    def __call__(self, x):
        *hidden, kernel, bias = self.trainable_variables
        for w, b in zip(hidden[::2], hidden[1::2], strict=True):
            x = jax.nn.leaky_relu(x @ w + b, 0.2)
        return self.activation(x @ kernel + bias)


def cross_entropy(label, logits):
    """`tf.keras.losses.BinaryCrossentropy(from_logits=True)`, for a label that all images share."""
    return jnp.mean(jax.nn.softplus(-logits if label else logits))


def discriminator_loss(real_output, fake_output):
    return cross_entropy(1, real_output) + cross_entropy(0, fake_output)


def generator_loss(fake_output):
    return cross_entropy(1, fake_output)


def distance(images, others):
    """Returns how far apart two sets of images are in the means of their pixels and in the covariances."""
    apart = [f(images) - f(others) for f in (lambda x: x.mean(axis=0), lambda x: np.cov(x, rowvar=False))]
    return float(sum(np.sum(x**2) for x in apart) ** 0.5)


def main(steps=1500):
    """Returns the distance of generated images from real ones before and after training, and the two losses."""
    rng, images = np.random.default_rng(0), (load_digits().data / 8 - 1).astype(np.float32)  # in [-1, 1]
    generator = Model("generator", (NOISE_DIM, 128, 64), jnp.tanh, rng)
    discriminator = Model("discriminator", (64, 128, 1), lambda x: x, rng)
    generator_optimizer = keras.optimizers.Adam(1e-3, beta_1=0.5)
    discriminator_optimizer = keras.optimizers.Adam(1e-3, beta_1=0.5)
    seed = keras.Variable(jax.random.PRNGKey(0), trainable=False, name="seed")

    def random_normal(shape):
        key, following = jax.random.split(seed.value)
        seed.assign(following)
        return jax.random.normal(key, shape)

    @keras.function
    def train_step(images):
        noise = random_normal([BATCH_SIZE, NOISE_DIM])
        gen_loss, gradients_of_generator = keras.value_and_grad(
            lambda: generator_loss(discriminator(generator(noise))), generator.trainable_variables
        )
        disc_loss, gradients_of_discriminator = keras.value_and_grad(
            lambda: discriminator_loss(discriminator(images), discriminator(generator(noise))),
            discriminator.trainable_variables,
        )
        generator_optimizer.apply_gradients(zip(gradients_of_generator, generator.trainable_variables))
        discriminator_optimizer.apply_gradients(zip(gradients_of_discriminator, discriminator.trainable_variables))
        return gen_loss, disc_loss

    noise = rng.normal(size=(500, NOISE_DIM)).astype(np.float32)
    before = distance(images, np.asarray(generator(noise)))
    for _ in range(steps):
        gen_loss, disc_loss = train_step(images[rng.integers(len(images), size=BATCH_SIZE)])
    after = distance(images, np.asarray(generator(noise)))
    print(f"generator loss {gen_loss:.2f}, discriminator loss {disc_loss:.2f}")
    print(f"distance of generated images from real ones {before:.2f} to {after:.2f}")
    for row in np.asarray(generator(noise[:8])).reshape(8, 8, 8).swapaxes(0, 1):
        print("  ".join("".join(" .:+#"[int((x + 1) * 2.49)] for x in line) for line in row))
    return before, after, float(gen_loss), float(disc_loss)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    main(parser.parse_args().steps)
