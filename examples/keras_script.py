"""A Keras-style script: an optimizer updates variables in place."""

import jax
import task
from task import Digits

from functional_opt import keras


def train(batches):
    variables = {
        layer: {name: keras.Variable(x, name=f"{layer}/{name}") for name, x in weights.items()}
        for layer, weights in task.init(jax.random.key(0)).items()
    }
    optimizer = keras.optimizers.Adam(learning_rate=3e-3)

    # The same, but several times slower, as it differentiates the loss at every call:
    #     optimizer.minimize(lambda: task.loss(variables, images, classes), var_list)
    step = optimizer.make_train_step(lambda images, classes: task.loss(variables, images, classes))

    losses = [step(images, classes) for images, classes in batches]
    return variables, losses


if __name__ == "__main__":
    digits = Digits.load()
    variables, _ = train(digits.batches(epochs=30))
    print(f"test accuracy {task.accuracy(variables, *digits.test):.1%}")
