"""An optimizer that wraps another: TensorFlow Addons' Lookahead, around the AdaBelief of `custom_optimizer.py`.

It calls the inner optimizer's protected methods, as OptimizerV2 has them: `_create_slots`, `_prepare`,
`_resource_apply_dense` and `_resource_apply_sparse`. What a port changes: `tf.where` becomes `jnp.where`, `tf.group`
and `control_dependencies` go, and `get_weights` joins the weights of both optimizers, not the property `weights`.
"""

import argparse

import jax.numpy as jnp
from custom_optimizer import AdaBelief, train_and_resume

from functional_opt import keras


class Lookahead(keras.optimizers.Optimizer):
    """Goes back half of the way every few steps. Zhang et al. 2019, arXiv:1907.08610."""

    def __init__(self, optimizer, sync_period=6, slow_step_size=0.5, name="Lookahead", **kwargs):
        super().__init__(name, **kwargs)
        self._optimizer = keras.optimizers.get(optimizer)
        self._set_hyper("sync_period", sync_period)
        self._set_hyper("slow_step_size", slow_step_size)

    def _create_slots(self, var_list):
        self._optimizer._create_slots(var_list=var_list)
        for var in var_list:
            self.add_slot(var, "slow", initializer=var)

    def _prepare(self, var_list):
        return self._optimizer._prepare(var_list=var_list)

    def apply_gradients(self, grads_and_vars, name=None, **kwargs):
        self._optimizer._iterations = self.iterations
        return super().apply_gradients(grads_and_vars, name, **kwargs)

    def _look_ahead(self, var):
        local_step, slow = self.iterations + 1, self.get_slot(var, "slow")
        is_due = local_step % self._get_hyper("sync_period", "int32") == 0
        step_back = slow + self._get_hyper("slow_step_size", var.dtype) * (var - slow)
        slow.assign(jnp.where(is_due, step_back, slow))
        var.assign(jnp.where(is_due, step_back, var))

    def _resource_apply_dense(self, grad, var, apply_state=None):
        self._optimizer._resource_apply_dense(grad, var, apply_state=apply_state)
        self._look_ahead(var)

    def _resource_apply_sparse(self, grad, var, indices, apply_state=None):
        self._optimizer._resource_apply_sparse(grad, var, indices, apply_state=apply_state)
        self._look_ahead(var)

    def get_weights(self):
        return super().get_weights() + self._optimizer.get_weights()

    def set_weights(self, weights):
        own = len(super().get_weights())
        super().set_weights(weights[:own])
        self._optimizer.set_weights(weights[own:])

    def get_config(self):
        config = {name: self._serialize_hyperparameter(name) for name in ("sync_period", "slow_step_size")}
        return super().get_config() | config | {"optimizer": keras.optimizers.serialize(self._optimizer)}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(keras.optimizers.deserialize(config.pop("optimizer"), custom_objects), **config)


def main(steps=300, inner=None):
    optimizer = Lookahead(AdaBelief(1e-2) if inner is None else inner)
    return train_and_resume(optimizer, {"Lookahead": Lookahead, "AdaBelief": AdaBelief}, steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
