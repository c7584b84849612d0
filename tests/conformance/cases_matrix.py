"""Cases, as in `cases.py`, of optimizers that precondition the axes of a leaf with matrices."""

from typing import Any

import functional_opt as fo

from . import references_matrix as ref
from .case import case

SOAP = {"max_precond_dim": 3, "precondition_frequency": 3}  # of longer axes the basis would be arbitrary in part
BLOCKS = {"block_size": 2, "eps": 0.01, "preconditioner_every": 3, "start_preconditioning_step": 2}
SHAMPOO = "learning_rate eps momentum weight_decay graft_eps"
SUMS = {"beta2": None, "grafting": "none", "eps": 0.1}
KRON = "learning_rate b1 weight_decay precond_lr precond_init_scale max_update_rms"
OFTEN = {"preconditioner_update_probability": 0.7, "weight_decay": 0.01}

KL = "learning_rate b1 b2 eps weight_decay initial_eigenvalue max_scale"

OPTIMIZERS: list[Any] = [
    case("soap", fo.soap, None, ref.soap, "learning_rate b1 b2 eps weight_decay", learning_rate=0.1, **SOAP),
    case("shampoo", fo.shampoo, None, ref.shampoo, SHAMPOO, learning_rate=0.01, weight_decay=0.01, **BLOCKS),
    case("kl_shampoo", fo.kl_shampoo, None, ref.kl_shampoo, KL, learning_rate=0.1, **SOAP),
    case("kl_soap", fo.kl_soap, None, ref.kl_soap, KL, learning_rate=0.1, **SOAP),
    case("psgd_kron", fo.psgd_kron, None, ref.psgd_kron, KRON, learning_rate=0.02, **OFTEN),
]

TRANSFORMATIONS: list[Any] = [
    case("scale_by_soap", fo.scale_by_soap, None, None, "b1 b2 eps", **SOAP),
    case("scale_by_shampoo", fo.scale_by_shampoo, None, None, "eps", **SUMS),
    case("scale_by_kl_shampoo", fo.scale_by_kl_shampoo, None, None, "b1 b2 eps", **SOAP),
    case("scale_by_kl_soap", fo.scale_by_kl_soap, None, None, "b1 b2 eps", **SOAP),
    case("scale_by_psgd_kron", fo.scale_by_psgd_kron, None, None, "b1 precond_lr", max_size_triangular=3),
]
