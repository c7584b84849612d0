"""An optimizer of one's own, written as for tf.keras's OptimizerV2: AdaBelief, with slots, sparse rows and a config.

What a port changes: in the methods, `tf.` functions become JAX's. They run compiled, by `minimize` too. Half-way, the
script saves the run, resumes it with a new model and a new optimizer, and lets both go on: they end the same, bit for
bit.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np

from functional_opt import keras


class AdaBelief(keras.optimizers.Optimizer):
    """Adam with the variance of the gradient in place of its square. Zhuang et al. 2020, arXiv:2010.07468."""

    def __init__(self, learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7, name="AdaBelief", **kwargs):
        super().__init__(name, **kwargs)
        self._set_hyper("learning_rate", kwargs.get("lr", learning_rate))
        self._set_hyper("beta_1", beta_1)
        self._set_hyper("beta_2", beta_2)
        self.epsilon = epsilon

    def _create_slots(self, var_list):
        for slot_name in ("m", "s"):
            for var in var_list:
                self.add_slot(var, slot_name)

    def _prepare_local(self, var_device, var_dtype, apply_state):
        super()._prepare_local(var_device, var_dtype, apply_state)
        coefficients = apply_state[(var_device, var_dtype)]
        local_step = (self.iterations + 1).astype(var_dtype)
        beta_1, beta_2 = self._get_hyper("beta_1", var_dtype), self._get_hyper("beta_2", var_dtype)
        lr = coefficients["lr_t"] * jnp.sqrt(1 - beta_2**local_step) / (1 - beta_1**local_step)
        coefficients.update(lr=lr, beta_1=beta_1, beta_2=beta_2)

    def _resource_apply_dense(self, grad, var, apply_state=None):
        place = var.device, var.dtype.base_dtype
        c = (apply_state or {}).get(place) or self._fallback_apply_state(*place)
        m, s = self.get_slot(var, "m"), self.get_slot(var, "s")
        m.assign_add((1 - c["beta_1"]) * (grad - m), use_locking=self._use_locking)
        s.assign_add((1 - c["beta_2"]) * ((grad - m) ** 2 - s), use_locking=self._use_locking)
        var.assign_sub(c["lr"] * m / (jnp.sqrt(s) + self.epsilon), use_locking=self._use_locking)

    def _resource_apply_sparse(self, grad, var, indices, apply_state=None):  # moves only the rows of the batch
        place = var.device, var.dtype.base_dtype
        c = (apply_state or {}).get(place) or self._fallback_apply_state(*place)
        m, s = self.get_slot(var, "m"), self.get_slot(var, "s")
        self._resource_scatter_add(m, indices, (1 - c["beta_1"]) * (grad - m[indices]))
        self._resource_scatter_add(s, indices, (1 - c["beta_2"]) * ((grad - m[indices]) ** 2 - s[indices]))
        self._resource_scatter_add(var, indices, -c["lr"] * m[indices] / (jnp.sqrt(s[indices]) + self.epsilon))

    def get_config(self):
        config = {name: self._serialize_hyperparameter(name) for name in ("learning_rate", "beta_1", "beta_2")}
        return super().get_config() | config | {"epsilon": self.epsilon}


def make_model(rng):
    table = keras.Variable(rng.normal(0, 0.1, (500, 16)), name="table", dtype="float32")
    return [table, keras.Variable(rng.normal(0, 0.1, (16, 4)), name="head/kernel", dtype="float32")]


def loss_fn(model, words, topics):
    table, kernel = model
    logits = table.sparse_read(words).mean(axis=1) @ kernel
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), topics[:, None], axis=1).mean()


def make_batches(rng, steps):
    """Returns batches of texts of five words, and their topics: word i is about topic i % 4; one in three strays."""
    topics = rng.integers(4, size=(steps, 32))
    words = rng.integers(125, size=(steps, 32, 5)) * 4 + topics[..., None]
    words = np.where(rng.random(words.shape) < 1 / 3, rng.integers(500, size=words.shape), words)
    return list(zip(words, topics))


def train_and_resume(optimizer, custom_objects, steps):
    """Returns the losses, and the values of the model at the end: of the run itself, and of the resumed one."""
    rng = np.random.default_rng(0)
    model, batches, losses = make_model(rng), make_batches(rng, steps), []
    for batch in batches[: steps // 2]:
        losses.append(float(loss_fn(model, *batch)))
        optimizer.minimize(lambda batch=batch: loss_fn(model, *batch), model)

    config = json.dumps(keras.optimizers.serialize(optimizer))
    weights, values = optimizer.get_weights(), [v.numpy() for v in model]

    new_model = make_model(rng)
    new_optimizer = keras.optimizers.deserialize(json.loads(config), custom_objects)
    new_optimizer.build(new_model)
    new_optimizer.set_weights(weights)
    for variable, value in zip(new_model, values):
        variable.assign(value)

    step = optimizer.make_train_step(lambda *batch: loss_fn(model, *batch))
    new_step = new_optimizer.make_train_step(lambda *batch: loss_fn(new_model, *batch))
    for batch in batches[steps // 2 :]:
        losses.append(float(step(*batch)))
        new_step(*batch)
    ends = [[v.numpy() for v in variables] for variables in (model, new_model)]
    print(f"{optimizer.get_config()['name']}: loss {np.mean(losses[:10]):.3f} to {np.mean(losses[-10:]):.3f}")
    print("the resumed run ends", "the same" if all((a == b).all() for a, b in zip(*ends)) else "differently")
    return losses, *ends


def main(steps=300):
    return train_and_resume(AdaBelief(1e-2), {"AdaBelief": AdaBelief}, steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
