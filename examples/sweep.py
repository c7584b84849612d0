"""A sweep of learning rates, compiled once: `vmap` over the transformation itself."""

import jax
import jax.numpy as jnp
import task
from task import Digits

import functional_opt as fo

RATES = jnp.logspace(-4, -0.5, 8)


@jax.jit
def train(txs, images, classes):
    """Trains one network for each transformation; returns their params and losses, shape (8, steps)."""

    def run(tx):
        def step(carry, batch):
            params, state = carry
            loss, grads = jax.value_and_grad(task.loss)(params, *batch)
            updates, state = tx.update(grads, state, params)
            return (fo.apply_updates(params, updates), state), loss

        params = task.init(jax.random.key(0))
        (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), (images, classes))
        return params, losses

    return jax.vmap(run)(txs)


def sweep(batches):
    images, classes = (jnp.stack(part) for part in zip(*batches, strict=True))
    return train(jax.vmap(fo.adam)(RATES), images, classes)


if __name__ == "__main__":
    digits = Digits.load()
    params, losses = sweep(digits.batches(epochs=30))
    for i, rate in enumerate(RATES):
        network = jax.tree.map(lambda x: x[i], params)  # noqa: B023
        print(f"learning rate {rate:.4f}: test accuracy {task.accuracy(network, *digits.test):.1%}")
