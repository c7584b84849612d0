"""Cases, as in `cases.py`, of the optimizers of `contrib` and what they are built of."""

import optax

import functional_opt as fo

from . import references_contrib as ref
from .case import case

THEIRS = optax.contrib
MADGRAD = "learning_rate momentum eps"
ACPROP = "learning_rate b1 b2 eps eps_root"
DECAY = {"weight_decay": 0.1}
LOOSE = {"learning_rate": 0.05, "eps": 0.1, "eps_root": 0.01, "weight_decay": 0.1}

OPTIMIZERS = [
    case("madgrad", fo.madgrad, THEIRS.madgrad, ref.madgrad, MADGRAD, learning_rate=0.05),
    case("madgrad-decay", fo.madgrad, THEIRS.madgrad, ref.madgrad, MADGRAD, learning_rate=0.02, **DECAY),
    case("acprop", fo.acprop, THEIRS.acprop, ref.acprop, ACPROP, learning_rate=0.02),
    case(
        "acprop-eps",
        fo.acprop,
        THEIRS.acprop,
        ref.acprop,
        ACPROP,
        learning_rate=0.05,
        eps=0.1,
        eps_root=0.01,
        **DECAY,
    ),
]

TRANSFORMATIONS = [
    case("scale_by_madgrad", fo.scale_by_madgrad, THEIRS.scale_by_madgrad, None, MADGRAD, learning_rate=0.05),
    case("scale_by_acprop", fo.scale_by_acprop, THEIRS.scale_by_acprop, None, "b1 b2 eps eps_root"),
]
