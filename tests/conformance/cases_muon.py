"""Cases, as in `cases.py`, of the optimizers that make matrices orthogonal."""

import jax
import numpy as np

import functional_opt as fo

from . import references_muon as ref
from .case import case, matrices

NORMUON = {"learning_rate": 0.2, "weight_decay": 0.01}


def normuon_matrices(b2, eps):
    rule = fo.scale_by_normuon(b2=b2, eps=eps, consistent_rms=None, nesterov=False)
    return fo.chain(fo.masked(rule, matrices), fo.scale(0.02))


UNEVEN = fo.MuonDimensionNumbers(0, 1, (3, 1))  # of the kernel's four rows, three are one matrix
HALVES = fo.MuonDimensionNumbers(0, 1, 2)
MUONBP = {"learning_rate": 0.2, "blocks": None, "period": 3, "block_scale": 0.5, "weight_decay": 0.01}
DION2 = {"learning_rate": 0.05, "fraction": 0.5, "weight_decay": 0.01}
DION = {"learning_rate": 0.05, "rank_fraction": 0.5, "weight_decay": 0.01}
SCION = {"learning_rate": 0.02, "scale": 2.0}


def norms_by_axes(tree):
    """Those that no default gives to what the table has."""
    return jax.tree.map(lambda x: "per_output" if np.ndim(x) > 1 else "rms", tree)


def dion_of_rank_one(w, grads, rank_fraction, **args):
    return ref.dion(w, grads, rank=1, **args)


def lines_of_matrices(rule):
    return lambda **args: fo.chain(fo.masked(rule(fraction=0.5, **args), matrices), fo.scale(0.02))


def muonbp_matrices(beta, block_scale):
    return fo.chain(fo.masked(fo.scale_by_muonbp(HALVES, 2, block_scale, beta=beta), matrices), fo.scale(0.02))


def dion_matrices(momentum, eps):
    return fo.chain(fo.masked(fo.scale_by_dion(momentum, eps=eps), matrices), fo.scale(0.02))


HYPERBALL = {"learning_rate": 0.1, "adam_weight_decay": 0.01}


def on_a_sphere(rate):
    return fo.masked(fo.hyperball(fo.trace(0.9), rate), matrices)


HEADS = fo.MuonDimensionNumbers(1, 0, output_blocks=2)


def muon_of_heads(learning_rate, beta):
    return fo.muon(learning_rate, beta=beta, muon_weight_dimension_numbers=HEADS)


WIDER = {"**/kernel": (1, 1), "**": None}  # four times as many rows, twice as many columns


def muon_of_a_wide_model(learning_rate, beta):
    return fo.muon(learning_rate, beta=beta, consistent_rms=0.2, base_params=WIDER)


def normuon_of_blocks(learning_rate, b1, weight_decay):
    return fo.normuon(learning_rate, b1, weight_decay=weight_decay, weight_dimension_numbers=UNEVEN)


def wide_shape(rms):
    return fo.masked(fo.scale_by_shape(rms, base_params=WIDER), matrices)


SOAP_MUON = {"learning_rate": 0.05, "weight_decay": 0.01, "max_precond_dim": 3, "precondition_frequency": 3}
MUOWN = {"learning_rate": 0.05, "weight_decay": 0.01}


def apart(rate):
    """Of matrices only, and of a stack of them for a leaf with three axes."""
    return fo.chain(fo.masked(fo.weight_normalized(fo.sgd(rate, 0.9), fo.adam(rate)), matrices))


OPTIMIZERS = [
    case("adamh", fo.adamh, None, ref.adamh, "learning_rate b1 b2 eps adam_weight_decay", **HYPERBALL),
    case("muonh", fo.muonh, None, ref.muonh, "learning_rate beta eps adam_weight_decay", **HYPERBALL),
    case("normuon", fo.normuon, None, ref.normuon, "learning_rate b1 b2 eps consistent_rms weight_decay", **NORMUON),
    case("normuon-blocks", normuon_of_blocks, None, ref.normuon_of_blocks, "learning_rate b1", **NORMUON, b1=0.9),
    case("muon-heads", muon_of_heads, None, ref.muon_of_heads, "learning_rate beta", learning_rate=0.05, beta=0.9),
    case("muon-wide", muon_of_a_wide_model, None, ref.muon_of_a_wide_model, "beta", learning_rate=0.2, beta=0.9),
    case("dion", fo.dion, None, dion_of_rank_one, "learning_rate momentum eps weight_decay", **DION),
    case("dion2", fo.dion2, None, ref.dion2, "learning_rate momentum eps weight_decay", **DION2),
    case("nordion2", fo.nordion2, None, ref.nordion2, "learning_rate momentum b2 eps weight_decay", **DION2),
    case("muonbp", fo.muonbp, None, ref.muonbp, "learning_rate block_scale beta eps weight_decay", **MUONBP),
    case("muonbp-blocks", fo.muonbp, None, ref.muonbp, "learning_rate block_scale", **MUONBP | {"blocks": HALVES}),
    case("soap_muon", fo.soap_muon, None, ref.soap_muon, "learning_rate b1 b2 eps weight_decay", **SOAP_MUON),
    case("muown", fo.muown, None, ref.muown, "learning_rate momentum weight_decay", **MUOWN),
    case("scion", fo.scion, None, ref.scion, "learning_rate momentum scale", **SCION),
]

TRANSFORMATIONS = [
    case("scale_by_shape-wide", wide_shape, None, None, "rms", rms=0.2),
    case("weight_normalized", apart, None, None, "rate", rate=0.03),
    case("hyperball", on_a_sphere, None, None, "rate", rate=0.1),
    case("scale_by_normuon", normuon_matrices, None, None, "b2 eps", b2=0.95, eps=1e-8),
    case("scale_by_dion", dion_matrices, None, None, "momentum eps", momentum=0.9, eps=1e-8),
    case("scale_by_dion2", lines_of_matrices(fo.scale_by_dion2), None, None, "momentum eps", momentum=0.9, eps=1e-8),
    case("scale_by_nordion2", lines_of_matrices(fo.scale_by_nordion2), None, None, "b2 eps", b2=0.9, eps=1e-8),
    case("scale_by_muonbp", muonbp_matrices, None, None, "beta block_scale", beta=0.9, block_scale=0.5),
    case("scale_by_scion", fo.scale_by_scion, None, None, "momentum scale eps", norms=norms_by_axes),
]
