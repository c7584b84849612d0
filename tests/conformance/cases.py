"""One table: every public optimizer and transformation, its arguments, its peer in Optax and its reference.

A new optimizer is one line in `OPTIMIZERS` and one function in `references.py`; a new transformation is
one line in `TRANSFORMATIONS`.
"""

import optax
import pytest

import functional_opt as fo

from . import cases_classic as classic
from . import cases_compose as compose
from . import cases_contrib as contrib
from . import cases_data as data
from . import cases_free as free
from . import cases_guard as guard
from . import cases_linesearch as linesearch
from . import cases_matrix as matrix
from . import cases_modern as modern
from . import cases_muon as muon
from . import cases_precision as precision
from . import cases_rest as rest
from . import references as ref
from . import references_by_leaf as leaf
from .case import (
    averaged,
    both,
    by_rank,
    case,
    dozat,
    groups,
    halving,
    matrices,
    multi_steps,
    muon_matrices,
    on_one_device,
    rates,
)
from .cases_contrib import squares, times_gradient, with_half_square  # noqa: F401, for what prints to be read back
from .cases_matrix import with_partners  # noqa: F401, likewise
from .cases_muon import norms_by_axes  # noqa: F401, likewise

ADAM, AMSGRAD, LION = (
    "learning_rate b1 b2 eps eps_root",
    "learning_rate b1 b2 eps",
    "learning_rate b1 b2 weight_decay",
)
RMS, RSS = "decay eps initial_scale", "initial_accumulator_value eps"
UNCORRECTED = {"bias_correction_mu": False, "bias_correction_nu": False}
HEAVY = {"momentum": 0.9, "nesterov": True}
CORRECTED = {"eps": 0.1, "bias_correction": True}
AS_KERAS = {"max_before_correction": True, "eps_hat": True}
DECAY = {"weight_decay": 0.1}
FTRL = "learning_rate learning_rate_power initial_accumulator_value l1 l2 l2_shrinkage beta"
LIGHT = {"learning_rate": 0.1, "initial_accumulator_value": 1e-4}  # the first step takes little from the weights
PENALTIES = LIGHT | {"l1": 0.01, "l2": 0.01, "l2_shrinkage": 0.01, "beta": 0.01}
SLOW = {"learning_rate": 0.2, "eps": 0.01}
LARS = "learning_rate trust_coefficient eps momentum"
FACTOR = "learning_rate decay_rate momentum weight_decay_rate"
FACTORED = {"learning_rate": 0.05, "min_dim_size_to_factor": 2, "momentum": 0.5, "weight_decay_rate": 1e-3}
UNSCALED = {"multiply_by_parameter_scale": False, "clipping_threshold": 0.5, "eps": 0.1}
SMALL = {"min_dim_size_to_factor": 1}
TRUST = "min_norm trust_coefficient eps"
DION = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377))
SF, SF_SGD, SF_ADAMW = "learning_rate b2 eps", optax.contrib.schedule_free_sgd, optax.contrib.schedule_free_adamw
WARM = {"learning_rate": 0.1, "warmup_steps": 5, "weight_decay": 0.1}

# name, constructor, Optax's, the reference, the arguments that are leaves, the arguments
OPTIMIZERS = [
    case("sgd", fo.sgd, optax.sgd, ref.sgd, "learning_rate", learning_rate=0.1),
    case("sgd-momentum", fo.sgd, optax.sgd, ref.sgd, "learning_rate momentum", learning_rate=0.02, momentum=0.9),
    case("sgd-nesterov", fo.sgd, optax.sgd, ref.sgd, "momentum", learning_rate=0.02, **HEAVY),
    case("adam", fo.adam, optax.adam, ref.adam, ADAM, learning_rate=0.1),
    case("adam-eps", fo.adam, optax.adam, ref.adam, ADAM, learning_rate=0.1, b2=0.9, eps=0.1, eps_root=0.01),
    case("adam-nesterov", fo.adam, optax.adam, ref.adam, ADAM, learning_rate=0.1, nesterov=True),
    case("adam-eps_hat", fo.adam, None, ref.adam_eps_hat, ADAM, learning_rate=0.1, eps=0.01, eps_hat=True),
    case("adamw", fo.adamw, optax.adamw, ref.adamw, "learning_rate", learning_rate=0.1),
    case("adamw-decay", fo.adamw, optax.adamw, ref.adamw, "weight_decay", learning_rate=0.1, weight_decay=0.1),
    case("amsgrad", fo.amsgrad, optax.amsgrad, ref.amsgrad, AMSGRAD, learning_rate=0.1, b2=0.9),
    case("amsgrad-raw", fo.amsgrad, optax.amsgrad, ref.amsgrad, AMSGRAD, learning_rate=0.1, eps=0.1, **UNCORRECTED),
    case("rmsprop", fo.rmsprop, optax.rmsprop, ref.rmsprop, RMS, learning_rate=0.05),
    case("rmsprop-eps", fo.rmsprop, optax.rmsprop, ref.rmsprop, RMS, learning_rate=0.05, eps=0.1, eps_in_sqrt=False),
    case("rmsprop-centered", fo.rmsprop, optax.rmsprop, ref.rmsprop, RMS, learning_rate=0.02, eps=0.1, centered=True),
    case("rmsprop-momentum", fo.rmsprop, optax.rmsprop, ref.rmsprop, "momentum", learning_rate=0.01, **HEAVY),
    case("rmsprop-corrected", fo.rmsprop, optax.rmsprop, ref.rmsprop, RMS, learning_rate=0.05, bias_correction=True),
    case("rmsprop-start", fo.rmsprop, optax.rmsprop, ref.rmsprop, RMS, learning_rate=0.05, initial_scale=1.0),
    case("adagrad", fo.adagrad, optax.adagrad, ref.adagrad, RSS, learning_rate=0.5),
    case("adagrad-eps", fo.adagrad, optax.adagrad, ref.adagrad, RSS, learning_rate=0.5, eps=0.1),
    case("lion", fo.lion, optax.lion, ref.lion, LION, learning_rate=0.02, weight_decay=0.01),
    case("adamax", fo.adamax, optax.adamax, ref.adamax, "learning_rate b1 b2 eps", learning_rate=0.1),
    case("adamax-outside", fo.adamax, None, ref.adamax, "b1 b2 eps", learning_rate=0.1, eps=0.1, eps_in_max=False),
    case("adamaxw", fo.adamaxw, optax.adamaxw, ref.adamax, "weight_decay", learning_rate=0.1, weight_decay=0.1),
    case("nadam", fo.nadam, optax.nadam, ref.nadam, ADAM, learning_rate=0.1),
    case("nadamw", fo.nadamw, optax.nadamw, ref.nadamw, "weight_decay", learning_rate=0.1, weight_decay=0.1),
    case("scale_by_nadam-optimizer", dozat, None, ref.dozat, "b1 b2 eps schedule_decay", learning_rate=0.1),
    case("scale_by_nadam-keras3", dozat, None, ref.dozat, "learning_rate", learning_rate=0.1, schedule_decay=1.0),
    case("adadelta", fo.adadelta, optax.adadelta, ref.adadelta, "learning_rate rho eps", learning_rate=20.0),
    case("adadelta-decay", fo.adadelta, optax.adadelta, ref.adadelta, "weight_decay", **SLOW, **DECAY),
    case("ftrl", fo.ftrl, None, ref.ftrl, FTRL, **LIGHT),
    case("ftrl-all", fo.ftrl, None, ref.ftrl, FTRL, **PENALTIES),
    case("ftrl-power", fo.ftrl, None, ref.ftrl, FTRL, learning_rate_power=-0.4, **LIGHT),
    case("lamb", fo.lamb, optax.lamb, leaf.lamb, "b1 b2 eps weight_decay", learning_rate=0.01, **DECAY),
    case("lars", fo.lars, optax.lars, leaf.lars, LARS, learning_rate=2.0, eps=0.1, **DECAY),
    case("adafactor", fo.adafactor, optax.adafactor, leaf.adafactor, "learning_rate decay_rate", learning_rate=0.05),
    case("adafactor-factored", fo.adafactor, optax.adafactor, leaf.adafactor, FACTOR, **FACTORED),
    case("adafactor-plain", fo.adafactor, optax.adafactor, leaf.adafactor, "eps", learning_rate=0.02, **UNSCALED),
    case("muon", fo.muon, optax.contrib.muon, leaf.muon, "learning_rate beta eps", learning_rate=0.05),
    case("muon-rms", fo.muon, optax.contrib.muon, leaf.muon, "consistent_rms", learning_rate=0.1, consistent_rms=0.2),
    case("schedule_free_sgd", fo.schedule_free_sgd, SF_SGD, leaf.schedule_free_sgd, "b1", learning_rate=0.2),
    case("schedule_free_adamw", fo.schedule_free_adamw, SF_ADAMW, leaf.schedule_free_adamw, SF, learning_rate=0.1),
    case("schedule_free_adamw-warm", fo.schedule_free_adamw, None, leaf.schedule_free_adamw, SF, **WARM),
    *compose.OPTIMIZERS,
    *classic.OPTIMIZERS,
    *data.OPTIMIZERS,
    *contrib.OPTIMIZERS,
    *free.OPTIMIZERS,
    *guard.OPTIMIZERS,
    *rest.OPTIMIZERS,
    *modern.OPTIMIZERS,
    *precision.OPTIMIZERS,
    *matrix.OPTIMIZERS,
    *muon.OPTIMIZERS,
]

TRANSFORMATIONS = [
    case("identity", fo.identity, optax.identity),
    case("set_to_zero", fo.set_to_zero, optax.set_to_zero),
    case("scale", fo.scale, optax.scale, None, "step_size", step_size=-0.5),
    case("scale_by_schedule", fo.scale_by_schedule, optax.scale_by_schedule, step_size_fn=halving),
    case("scale_by_learning_rate", fo.scale_by_learning_rate, None, None, "learning_rate", learning_rate=0.1),
    case("scale_by_learning_rate-schedule", *both(lambda o: o.scale_by_learning_rate(rates(o))), None),
    case("scale_by_adam", fo.scale_by_adam, optax.scale_by_adam, None, "b1 b2 eps eps_root"),
    case("scale_by_adam-bf16", fo.scale_by_adam, None, None, "b1 b2", state_dtype="bfloat16"),
    case("scale_by_amsgrad", fo.scale_by_amsgrad, optax.scale_by_amsgrad, None, "b1 b2 eps eps_root"),
    case("scale_by_amsgrad-keras", fo.scale_by_amsgrad, None, None, "b1 b2 eps", **AS_KERAS),
    case("scale_by_lion", fo.scale_by_lion, optax.scale_by_lion, None, "b1 b2"),
    case("scale_by_lion-smooth", fo.scale_by_lion, optax.scale_by_lion, None, "b1 b2 smooth_beta", mode="smooth"),
    case("scale_by_lion-refined", fo.scale_by_lion, optax.scale_by_lion, None, "b1 b2", mode="refined"),
    case("scale_by_rms", fo.scale_by_rms, optax.scale_by_rms, None, "decay eps initial_scale"),
    case("scale_by_rms-corrected", fo.scale_by_rms, optax.scale_by_rms, None, "decay eps", bias_correction=True),
    case("scale_by_stddev", fo.scale_by_stddev, optax.scale_by_stddev, None, "decay eps initial_scale", eps=0.1),
    case("scale_by_stddev-corrected", fo.scale_by_stddev, optax.scale_by_stddev, None, "eps", **CORRECTED),
    case("scale_by_rss", fo.scale_by_rss, optax.scale_by_rss, None, RSS),
    case("scale_by_rss-outside", fo.scale_by_rss, None, None, RSS, eps_in_sqrt=False),
    case("scale_by_adamax", fo.scale_by_adamax, optax.scale_by_adamax, None, "b1 b2 eps"),
    case("scale_by_nadam", fo.scale_by_nadam, None, None, "b1 b2 eps schedule_decay"),
    case("scale_by_adadelta", fo.scale_by_adadelta, optax.scale_by_adadelta, None, "rho eps"),
    case("scale_by_factored_rms", fo.scale_by_factored_rms, optax.scale_by_factored_rms, None, "decay_rate epsilon"),
    case("scale_by_factored_rms-all", fo.scale_by_factored_rms, optax.scale_by_factored_rms, **SMALL),
    case("scale_by_factored_rms-last", fo.scale_by_factored_rms, factored_axes="last", **SMALL),
    case("scale_by_trust_ratio", fo.scale_by_trust_ratio, optax.scale_by_trust_ratio, None, TRUST),
    case("scale_by_param_block_norm", fo.scale_by_param_block_norm, optax.scale_by_param_block_norm),
    case("scale_by_param_block_rms", fo.scale_by_param_block_rms, optax.scale_by_param_block_rms, None, "min_scale"),
    case("scale_by_muon", *both(muon_matrices), None, "beta eps", beta=0.95, eps=1e-8),
    case("scale_by_muon-spectral", *both(muon_matrices), preconditioning="spectral", nesterov=False),
    case("scale_by_muon-aol", *both(muon_matrices), preconditioning="aol", adaptive=True),
    case("scale_by_muon-schatten", *both(muon_matrices), preconditioning="schatten", ns_coeffs=DION),
    case("orthogonalize", lambda eps: fo.masked(fo.orthogonalize(eps=eps), matrices), None, None, "eps", eps=1e-7),
    case("scale_by_shape", lambda rms: fo.masked(fo.scale_by_shape(rms), matrices), None, None, "rms", rms=0.2),
    case("schedule_free", *both(averaged), None, "learning_rate b1", learning_rate=0.1, b1=0.95),
    case("trace", fo.trace, optax.trace, None, "decay", decay=0.9),
    case("trace-nesterov", fo.trace, optax.trace, None, "decay", decay=0.9, nesterov=True),
    case("trace-bf16", fo.trace, None, None, "decay", decay=0.9, accumulator_dtype="bfloat16"),
    case("ema", fo.ema, optax.ema, None, "decay", decay=0.9),
    case("ema-biased", fo.ema, optax.ema, None, "decay", decay=0.9, debias=False),
    case("clip", fo.clip, optax.clip, None, "max_delta", max_delta=0.5),
    case("clip_by_norm", fo.clip_by_norm, None, None, "max_norm", max_norm=1.0),
    case("clip_by_global_norm", fo.clip_by_global_norm, optax.clip_by_global_norm, None, "max_norm", max_norm=1.0),
    case("clip_by_block_rms", fo.clip_by_block_rms, optax.clip_by_block_rms, None, "threshold", threshold=0.5),
    case("adaptive_grad_clip", fo.adaptive_grad_clip, optax.adaptive_grad_clip, None, "clipping eps", clipping=0.1),
    case("adaptive_grad_clip-axis", fo.adaptive_grad_clip, optax.adaptive_grad_clip, clipping=0.1, axis=()),
    case("add_decayed_weights", fo.add_decayed_weights, optax.add_decayed_weights, None, "weight_decay", **DECAY),
    case("add_decayed_weights-masked", *both(lambda o: o.add_decayed_weights(0.1, matrices)), None),
    case("add_decayed_weights-schedule", *both(lambda o: o.add_decayed_weights(rates(o))), None),
    case("masked", *both(lambda o, decay: o.masked(o.trace(decay), matrices)), None, "decay", decay=0.9),
    case("masked-paths", lambda decay: fo.masked(fo.trace(decay), {"**/kernel": True, "**": False}), decay=0.9),
    case("freeze", *both(lambda o: o.freeze(matrices)), None),
    case("partition", *both(lambda o, decay: o.partition(groups(o, decay), by_rank)), None, "decay", decay=0.9),
    case("MultiSteps", *both(multi_steps), None, "every_k learning_rate", every_k=3, learning_rate=0.1),
    case("apply_if_finite", *both(lambda o, rate: o.apply_if_finite(o.adam(rate), 3)), None, "rate", rate=0.1),
    case("chain", *both(lambda o, norm: o.chain(o.clip_by_global_norm(norm), o.adam(0.1))), None, "norm", norm=1.0),
    case("chain-empty", fo.chain),
    case("named_chain", *both(lambda o, d: o.named_chain(("m", o.trace(d)), ("lr", o.scale(0.1)))), None, "d", d=0.9),
    case("aggregate", lambda op: on_one_device(fo.aggregate("device", op)), op="mean"),
    *compose.TRANSFORMATIONS,
    *classic.TRANSFORMATIONS,
    *data.TRANSFORMATIONS,
    *contrib.TRANSFORMATIONS,
    *free.TRANSFORMATIONS,
    *linesearch.TRANSFORMATIONS,
    *guard.TRANSFORMATIONS,
    *rest.TRANSFORMATIONS,
    *modern.TRANSFORMATIONS,
    *precision.TRANSFORMATIONS,
    *matrix.TRANSFORMATIONS,
    *muon.TRANSFORMATIONS,
]

CASES = OPTIMIZERS + TRANSFORMATIONS
PLAIN = [case for case in CASES if "-" not in case.name]
"""Without variants, such as "adam-nesterov": for what takes long to compile, and no option changes."""

each_case = pytest.mark.parametrize("case", CASES, ids=repr)
each_plain_case = pytest.mark.parametrize("case", PLAIN, ids=repr)
each_optimizer = pytest.mark.parametrize("case", OPTIMIZERS, ids=repr)
