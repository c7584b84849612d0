"""Cases, as in `cases.py`, of optimizers that precondition the axes of a leaf with matrices."""

from typing import Any

import functional_opt as fo

from . import references_matrix as ref
from .case import case

SOAP = {"max_precond_dim": 3, "precondition_frequency": 3}  # of longer axes the basis would be arbitrary in part

OPTIMIZERS: list[Any] = [
    case("soap", fo.soap, None, ref.soap, "learning_rate b1 b2 eps weight_decay", learning_rate=0.1, **SOAP),
]

TRANSFORMATIONS: list[Any] = [
    case("scale_by_soap", fo.scale_by_soap, None, None, "b1 b2 eps", **SOAP),
]
