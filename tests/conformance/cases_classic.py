"""Cases of the classic optimizers: those of Optax's core that Keras does not have."""

import warnings

import optax

import functional_opt as fo

from . import references as plain
from . import references_classic as ref
from .case import both, case, with_a_loss


def optimistic_adam_peer(**args):
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # Optax's own, for the name
        return optax.optimistic_adam(**args)


def scale_by_polyak(o, f_min, max_learning_rate, eps):
    return with_a_loss(o.scale_by_polyak(f_min, max_learning_rate, eps, variant="sps+"))


RADAM = "learning_rate b1 b2 eps eps_root threshold"
BELIEF = "learning_rate b1 b2 eps eps_root"
ADAN = "learning_rate b1 b2 b3 eps eps_root weight_decay"
SHORT = {"learning_rate": 0.1, "b2": 0.9}  # adaptive soon, and its variance known before the fiftieth step
NOVO = "learning_rate b1 b2 eps eps_root weight_decay"
RPROP = "learning_rate eta_minus eta_plus"
BOUNDS = {"min_step_size": 0.04, "max_step_size": 0.13}
OPTIMISTIC = "learning_rate alpha beta"
CALM = {"learning_rate": 0.1, "eta": 0.0}  # the noise has tests of its own
OGD = fo.optimistic_gradient_descent, optax.optimistic_gradient_descent, ref.optimistic_gradient_descent
OADAM = fo.optimistic_adam, optimistic_adam_peer, ref.optimistic_adam
OADAM_V2 = fo.optimistic_adam_v2, optax.optimistic_adam_v2, ref.optimistic_adam_v2
SOG = fo.scale_by_optimistic_gradient, optax.scale_by_optimistic_gradient
POLYAK = {"f_min": 0.3, "max_learning_rate": 0.6, "eps": 0.1}  # some steps are as long as they may be, some shorter
DECAY = {"learning_rate": 0.02, "weight_decay": 0.1}

OPTIMIZERS = [
    case("radam", fo.radam, optax.radam, ref.radam, RADAM, learning_rate=0.1),
    case("radam-short", fo.radam, optax.radam, ref.radam, RADAM, eps=0.1, eps_root=0.01, **SHORT),
    case("radam-eps-hat", fo.radam, None, ref.radam, RADAM, eps=0.1, eps_hat=True, **SHORT),
    case("radam-nesterov", fo.radam, optax.radam, ref.radam, RADAM, nesterov=True, **SHORT),
    case("adabelief", fo.adabelief, optax.adabelief, ref.adabelief, BELIEF, learning_rate=0.1),
    case("adabelief-eps", fo.adabelief, optax.adabelief, ref.adabelief, BELIEF, eps=0.1, eps_root=0.01, **SHORT),
    case("adabelief-nesterov", fo.adabelief, optax.adabelief, ref.adabelief, BELIEF, nesterov=True, **SHORT),
    case("adan", fo.adan, None, ref.adan, ADAN, learning_rate=0.1),
    case("adan-decay", fo.adan, None, ref.adan, ADAN, learning_rate=0.1, eps=0.1, weight_decay=0.1),
    case("yogi", fo.yogi, None, ref.yogi, "learning_rate b1 b2 eps", learning_rate=0.1),
    case("yogi-short", fo.yogi, None, ref.yogi, "learning_rate b1 b2 eps", eps=0.1, **SHORT),
    case("novograd", fo.novograd, optax.novograd, ref.novograd, NOVO, learning_rate=0.02),
    case("novograd-decay", fo.novograd, optax.novograd, ref.novograd, NOVO, eps=0.1, eps_root=0.1, **DECAY),
    case("fromage", fo.fromage, optax.fromage, ref.fromage, "learning_rate min_norm", learning_rate=0.02),
    case("sm3", fo.sm3, None, ref.sm3, "learning_rate momentum", learning_rate=0.5),
    case("rprop", fo.rprop, None, ref.rprop, RPROP, learning_rate=0.1),
    case("rprop-bounds", fo.rprop, None, ref.rprop, RPROP, learning_rate=0.1, **BOUNDS),
    case("sign_sgd", fo.sign_sgd, optax.sign_sgd, ref.sign_sgd, "learning_rate", learning_rate=0.02),
    case("signum", fo.signum, optax.signum, ref.signum, "learning_rate beta", learning_rate=0.02),
    case("noisy_sgd", fo.noisy_sgd, None, lambda w, g, eta, **args: plain.sgd(w, g, **args), "learning_rate", **CALM),
    case("optimistic_gradient_descent", *OGD, OPTIMISTIC, learning_rate=0.05),
    case("optimistic_gradient_descent-weights", *OGD, OPTIMISTIC, learning_rate=0.05, alpha=0.7, beta=-0.3),
    case("optimistic_adam", *OADAM, "learning_rate b1 b2 eps", learning_rate=0.05),
    case("optimistic_adam-optimism", *OADAM, "optimism", learning_rate=0.05, optimism=0.02, nesterov=False),
    case("optimistic_adam_v2", *OADAM_V2, OPTIMISTIC, learning_rate=0.05),
    case("optimistic_adam_v2-weights", *OADAM_V2, OPTIMISTIC, learning_rate=0.05, alpha=0.7, beta=0.5),
]

TRANSFORMATIONS = [
    case("scale_by_radam", fo.scale_by_radam, optax.scale_by_radam, None, "b1 b2 eps eps_root threshold", b2=0.9),
    case("scale_by_radam-bf16", fo.scale_by_radam, None, None, "b1 b2", state_dtype="bfloat16"),
    case("scale_by_belief", fo.scale_by_belief, optax.scale_by_belief, None, "b1 b2 eps eps_root"),
    case("scale_by_belief-bf16", fo.scale_by_belief, None, None, "b1 b2", state_dtype="bfloat16"),
    case("scale_by_adan", fo.scale_by_adan, None, None, "b1 b2 b3 eps eps_root"),
    case("scale_by_adan-bf16", fo.scale_by_adan, None, None, "b1 b2 b3", state_dtype="bfloat16"),
    case("scale_by_yogi", fo.scale_by_yogi, None, None, "b1 b2 eps eps_root initial_accumulator_value", eps_root=0.1),
    case("scale_by_novograd", fo.scale_by_novograd, optax.scale_by_novograd, None, "b1 b2 eps weight_decay", b1=0.5),
    case("scale_by_novograd-bf16", fo.scale_by_novograd, None, None, "b1 b2", state_dtype="bfloat16"),
    case("scale_by_sm3", fo.scale_by_sm3, None, None, "b1 eps"),
    case("scale_by_sm3-decay", fo.scale_by_sm3, None, None, "b1 b2 eps", b2=0.9, eps=0.1),
    case("scale_by_sm3-bf16", fo.scale_by_sm3, None, None, "b1", state_dtype="bfloat16"),
    case("scale_by_rprop", fo.scale_by_rprop, None, None, RPROP, learning_rate=0.1),
    case("scale_by_sign", fo.scale_by_sign, optax.scale_by_sign),
    case("add_noise", fo.add_noise, None, None, "gamma key", eta=0.0, gamma=0.55, key=3),
    case("scale_by_optimistic_gradient", *SOG, None, "alpha beta", alpha=0.7, beta=0.5),
    case("scale_by_polyak", *both(scale_by_polyak), None, "f_min max_learning_rate eps", **POLYAK),
]
