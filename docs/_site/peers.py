"""The counterparts of a name in Optax, torch and Keras, by the tables that the bridges to them use."""

import functional_opt as fo
from functional_opt.interop.torch_rules import RULES as TORCH
from functional_opt.keras.optimizers.serialization import CLASSES as KERAS

SCHEDULES = {
    "exponential_decay": "ExponentialDecay",
    "inverse_time_decay": "InverseTimeDecay",
    "piecewise_constant_schedule": "PiecewiseConstantDecay",
    "polynomial_schedule": "PolynomialDecay",
    "cosine_decay_schedule": "CosineDecay",
    "cosine_restarts_schedule": "CosineDecayRestarts",
}
TORCH_SCHEDULES = {
    "cosine_decay_schedule": "CosineAnnealingLR",
    "cosine_restarts_schedule": "CosineAnnealingWarmRestarts",
    "exponential_decay": "ExponentialLR, StepLR",
    "linear_schedule": "LinearLR",
    "piecewise_constant_schedule": "MultiStepLR",
    "polynomial_schedule": "PolynomialLR",
    "cosine_onecycle_schedule": "OneCycleLR",
    "join_schedules": "SequentialLR",
    "constant_schedule": "ConstantLR",
    "reduce_on_plateau": "ReduceLROnPlateau",
}
TORCH_FUNCTIONS = {
    "clip_by_global_norm": "torch.nn.utils.clip_grad_norm_",
    "clip": "torch.nn.utils.clip_grad_value_",
    "dynamic_loss_scale": "torch.amp.GradScaler",
    "params_ema": "torch.optim.swa_utils.AveragedModel",
    "shard": "torch.distributed.optim.ZeroRedundancyOptimizer",
    "lbfgs": "torch.optim.LBFGS (no state is carried over)",
}


def counterparts(name: str) -> dict[str, str]:
    """Returns the names of what does the same in other libraries, by library.

    >>> counterparts("adamw")
    {'Optax': 'optax.adamw', 'torch': 'torch.optim.AdamW', 'Keras': 'keras.optimizers.AdamW'}
    """
    found = {"Optax": _in_optax(name), "torch": _in_torch(name), "Keras": _in_keras(name)}
    return {library: theirs for library, theirs in found.items() if theirs}


def _in_optax(name: str) -> str:
    import optax

    for path, module in (("optax", optax), ("optax.contrib", optax.contrib)):
        if hasattr(module, name):
            return f"{path}.{name}"
    return ""


def _same(name: str, table: dict) -> str:
    """Returns the class of a table whose name is the same but for capitals and underscores."""
    return next((cls for cls in table if cls.lower() == name.replace("_", "")), "")


def _in_torch(name: str) -> str:
    if name in TORCH_SCHEDULES:
        return f"torch.optim.lr_scheduler.{TORCH_SCHEDULES[name]}"
    cls = _same(name, TORCH)
    return f"torch.optim.{cls}" if cls else TORCH_FUNCTIONS.get(name, "")


def _in_keras(name: str) -> str:
    if name in SCHEDULES:
        return f"keras.optimizers.schedules.{SCHEDULES[name]}"
    cls = _same(name, KERAS)
    return f"keras.optimizers.{cls}" if cls and hasattr(fo, name) else ""
