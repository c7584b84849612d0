"""Cases, as in `cases.py`, of wrappers that store the state or the params in few bits."""

import functional_opt as fo

from .case import case


def quantized(rate: float, bits: int = 8, code: str = "octaves", scales: str = "blocks"):
    """Blocks of two, and only the kernel has them."""
    return fo.quantize_state(fo.adam(rate), bits, block_size=2, min_size=5, code=code, scales=scales)


OPTIMIZERS = []
TRANSFORMATIONS = [
    case("quantize_state", quantized, None, None, "rate", rate=0.1),
    case("quantize_state-4", quantized, None, None, "rate", rate=0.1, bits=4),
    case("quantize_state-rank1", quantized, None, None, "rate", rate=0.1, bits=4, scales="rank1"),
    case("quantize_state-companded", quantized, None, None, "rate", rate=0.1, code="companded"),
    case("stochastic_round", lambda rate: fo.stochastic_round(fo.adam(rate)), None, None, "rate", rate=0.1),
    case("kahan", lambda rate: fo.kahan(fo.adam(rate)), None, None, "rate", rate=0.1),
    case("master_weights", lambda rate: fo.master_weights(fo.adam(rate)), None, None, "rate", rate=0.1),
    case(
        "master_weights-int16", lambda rate: fo.master_weights(fo.adam(rate), "int16"), None, None, "rate", rate=0.1
    ),
]

STORE_REAL = ("quantize_state",)
"""What stores real slots in few bits, and leaves complex ones as they are."""

STEP_TO_16_BITS = ("stochastic_round", "kahan", "master_weights")
"""Whose updates of 16-bit params lead to 16-bit params, and which keep for these only what they lack."""
