"""Trains models of other libraries: AdamW with a Flax NNX model, Muon with an Equinox model."""

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx
from task import Digits

import functional_opt as fo


def cross_entropy(scores, classes):
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), classes[:, None], axis=1).mean()


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(64, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images):
        return self.out(nnx.relu(self.hidden(images)))


@nnx.jit
def nnx_step(model, optimizer, images, classes):
    loss, grads = nnx.value_and_grad(lambda model: cross_entropy(model(images), classes))(model)
    optimizer.update(model, grads)
    return loss


def train_nnx(batches):
    """Trains with AdamW, without decay of the biases. Returns the model with averaged params, and the losses."""
    model = Network(nnx.Rngs(0))
    tx = fo.chain(fo.adamw(3e-3, weight_decay=0.01, mask={"*/bias": False}), fo.params_ema(0.99))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    losses = [nnx_step(model, optimizer, *batch) for batch in batches]
    nnx.update(model, fo.eval_params(optimizer.opt_state, nnx.state(model, nnx.Param)))
    return model, losses


@eqx.filter_jit
def equinox_step(tx, model, state, images, classes):
    loss, grads = eqx.filter_value_and_grad(lambda model: cross_entropy(jax.vmap(model)(images), classes))(model)
    updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), state, loss


def train_equinox(batches):
    """Trains with Muon for the matrices and AdamW for the biases. Returns the model and the losses."""
    model, losses = eqx.nn.MLP(64, 10, 64, depth=2, key=jax.random.key(0)), []
    tx = fo.muon(1e-2, consistent_rms=0.2, matrix_layout="out_in")
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    for batch in batches:
        model, state, loss = equinox_step(tx, model, state, *batch)
        losses.append(loss)
    return jax.vmap(model), losses


def main(epochs=30):
    """Returns, by name, the accuracy on the test images and the losses of every step."""
    digits = Digits.load()
    images, classes = digits.test
    results = {}
    for name, train in {"Flax NNX, AdamW": train_nnx, "Equinox, Muon": train_equinox}.items():
        model, losses = train(digits.batches(epochs))
        accuracy = float((model(images).argmax(axis=1) == classes).mean())
        results[name] = accuracy, [float(loss) for loss in losses]
        print(f"{name:16} loss {losses[0]:.3f} to {losses[-1]:.3f}, test accuracy {accuracy:.1%}")
    return results


if __name__ == "__main__":
    main()
