"""A submission to MLCommons AlgoPerf (training algorithms, external tuning): NAdamW, or any other transformation.

AlgoPerf's runner imports this file and calls its five functions, whose signatures are those of `algoperf/spec.py` in
github.com/mlcommons/algorithmic-efficiency, version 0.6. To submit another optimizer, change `optimizer`. A
transformation is a pytree, so the state that AlgoPerf keeps holds it as well: its numbers are inputs of the compiled
step, and trials with other hyperparameters do not compile again.

The hyperparameters are a NamedTuple with the fields learning_rate, one_minus_beta1, beta2, weight_decay,
warmup_factor, label_smoothing and dropout_rate.
"""

import functools
from typing import Any

import jax
from algoperf import spec

import functional_opt as fo

BATCH_SIZES = {
    "criteo1tb": 262_144,
    "fastmri": 32,
    "imagenet_resnet": 1024,
    "imagenet_vit": 1024,
    "librispeech_conformer": 256,
    "librispeech_deepspeech": 256,
    "ogbg": 512,
    "wmt": 128,
    "mnist": 16,
}


def optimizer(hyperparameters: Any, steps: int) -> Any:
    warmup = int(hyperparameters.warmup_factor * steps)
    rate = fo.warmup_cosine_decay_schedule(0.0, hyperparameters.learning_rate, warmup, steps)
    b1, b2 = 1.0 - hyperparameters.one_minus_beta1, hyperparameters.beta2
    return fo.nadamw(rate, b1, b2, weight_decay=hyperparameters.weight_decay)


def get_batch_size(workload_name):
    if workload_name not in BATCH_SIZES:
        raise ValueError(f"workload_name must be one of {', '.join(BATCH_SIZES)}, got {workload_name!r}")
    return BATCH_SIZES[workload_name]


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    del model_state, rng
    tx = optimizer(hyperparameters, workload.step_hint)
    return {"tx": tx, "state": tx.init(model_params)}


def update_params(
    workload,
    current_param_container,
    current_params_types,
    model_state,
    hyperparameters,
    batch,
    loss_type,
    optimizer_state,
    eval_results,
    global_step,
    rng,
    train_state=None,
):
    del current_params_types, loss_type, eval_results, train_state
    smoothing, dropout = hyperparameters.label_smoothing, hyperparameters.dropout_rate
    tx, state = optimizer_state["tx"], optimizer_state["state"]
    params, model_state, state, metrics = _step(
        workload, current_param_container, model_state, state, tx, batch, rng, smoothing, dropout
    )
    if workload.metrics_logger is not None and global_step % 100 == 0:
        scalars = {name: float(x) for name, x in metrics.items()}
        workload.metrics_logger.append_scalar_metrics(scalars, global_step)
    return {"tx": tx, "state": state}, params, model_state


@functools.partial(jax.jit, static_argnums=(0, 7, 8), donate_argnums=(1, 2, 3))
def _step(workload, params, model_state, state, tx, batch, rng, smoothing, dropout):
    def loss_fn(params):
        train = spec.ForwardPassMode.TRAIN
        logits, new = workload.model_fn(
            params, batch, model_state, train, rng, update_batch_norm=True, dropout_rate=dropout
        )
        losses = workload.loss_fn(
            label_batch=batch["targets"],
            logits_batch=logits,
            mask_batch=batch.get("weights"),
            label_smoothing=smoothing,
        )
        return losses["summed"] / losses["n_valid_examples"], new

    (loss, model_state), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, state = tx.update(grads, state, params)
    metrics = {"loss": loss, "grad_norm": fo.global_norm(grads)}
    return fo.apply_updates(params, updates), model_state, state, metrics


def prepare_for_eval(
    workload,
    current_param_container,
    current_params_types,
    model_state,
    hyperparameters,
    loss_type,
    optimizer_state,
    eval_results,
    global_step,
    rng,
):
    """Gives the averages of an optimizer that keeps any, such as `schedule_free` or `params_ema`."""
    del workload, current_params_types, hyperparameters, loss_type, eval_results, global_step, rng
    params = fo.eval_params(optimizer_state["state"], current_param_container)
    return optimizer_state, params, model_state


def data_selection(
    workload,
    input_queue,
    optimizer_state,
    current_param_container,
    model_state,
    hyperparameters,
    global_step,
    rng,
):
    del workload, optimizer_state, current_param_container, model_state, hyperparameters, global_step, rng
    return next(input_queue)
