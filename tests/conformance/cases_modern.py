"""Cases, as in `cases.py`, of Adam's modern family."""

import functional_opt as fo

from . import references_modern as ref
from .case import case

ADAM = "learning_rate b1 b2 eps weight_decay"
DECAY = {"weight_decay": 0.1}

OPTIMIZERS = [
    case("stable_adamw", fo.stable_adamw, None, ref.stable_adamw, ADAM, learning_rate=0.1, **DECAY),
    case("laprop", fo.laprop, None, ref.laprop, ADAM, learning_rate=0.1, **DECAY),
    case("mars", fo.mars, None, ref.mars, f"{ADAM} gamma", learning_rate=0.1, gamma=0.1, **DECAY),
]

TRANSFORMATIONS = [
    case("scale_by_stable_adamw", fo.scale_by_stable_adamw, None, None, "b1 b2 eps"),
    case("scale_by_laprop", fo.scale_by_laprop, None, None, "b1 b2 eps"),
    case("scale_by_mars", fo.scale_by_mars, None, None, "b1 b2 eps gamma"),
]
