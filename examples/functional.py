"""Plain JAX: a jitted step over params and state."""

import jax
import task
from task import Digits

import functional_opt as fo

tx = fo.adam(learning_rate=3e-3, eps=1e-7, eps_hat=True)  # Keras's epsilon, to compare with keras_script.py


@jax.jit
def step(tx, params, state, images, classes):  # tx is data: a new learning rate does not recompile this
    loss, grads = jax.value_and_grad(task.loss)(params, images, classes)
    updates, state = tx.update(grads, state, params)
    return fo.apply_updates(params, updates), state, loss


def train(batches, tx=tx):
    params = task.init(jax.random.key(0))
    state = tx.init(params)
    losses = []
    for images, classes in batches:
        params, state, loss = step(tx, params, state, images, classes)
        losses.append(loss)
    return params, losses


if __name__ == "__main__":
    digits = Digits.load()
    params, _ = train(digits.batches(epochs=30))
    print(f"test accuracy {task.accuracy(params, *digits.test):.1%}")
