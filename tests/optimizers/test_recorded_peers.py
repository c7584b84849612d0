"""Beside the recorded steps of their authors' programs or PyTorch's: see `goldens/README.md`."""

import pathlib

import numpy as np
import pytest

import functional_opt as fo

from ..helpers import assert_close, train_compiled

GOLDENS = pathlib.Path(__file__).parent.parent / "goldens"


def torch_muon(consistent_rms):
    """Nesterov's momentum without Adam's correction, which `muon` has, as Optax."""
    decay = fo.add_decayed_weights(0.1), fo.scale_by_learning_rate(0.1)
    return fo.chain(fo.trace(0.95, nesterov=True), fo.orthogonalize(), fo.scale_by_shape(consistent_rms), *decay)


def muon(consistent_rms):
    return fo.muon(0.1, weight_decay=0.1, nesterov=False, consistent_rms=consistent_rms)


def normuon(consistent_rms):
    return fo.normuon(0.1, weight_decay=0.1, consistent_rms=consistent_rms)


def scion(norm, constrained):
    return fo.scion(0.1, norms=norm, scale=2.0, sign_scale=2.0, constrained=constrained)


def dion(rank_fraction):
    return fo.dion(0.1, rank_fraction=rank_fraction, weight_decay=0.1)


MUON = {
    "torch_muon/original/nesterov": torch_muon(None),
    "torch_muon/match_rms_adamw/nesterov": torch_muon(0.2),
    "torch_muon/original/plain": muon(None),
    "torch_muon/match_rms_adamw/plain": muon(0.2),
    "normuon/match_rms": normuon(0.2),
    "normuon/preserve_norm": normuon(None),
}
for theirs, ours in (("SPECTRAL", "spectral"), ("SIGN", "sign"), ("COL", "per_input"), ("ROW", "per_output")):
    MUON |= {f"scion/{theirs}/{how}": scion(ours, how == "constrained") for how in ("constrained", "free")}

MODERN = {
    "apollo": fo.apollo(0.1, rank=2, update_proj_gap=4),
    "apollo_mini": fo.apollo_mini(0.01, update_proj_gap=4),
    "dion/1.0": dion(1.0),
    "dion/0.5": dion(0.5),
    "laprop": fo.laprop(0.1),
}

RECORDED = {name: np.load(GOLDENS / f"{name}.npz") for name in ("muon_peers", "modern_peers")}
PEERS = {"muon_peers": MUON, "modern_peers": MODERN}


@pytest.mark.parametrize("file", PEERS)
def test_all_that_is_recorded_is_compared(file):
    assert {*PEERS[file], "params", "grads"} == set(RECORDED[file].files)


@pytest.mark.parametrize("file, name", [(file, name) for file in PEERS for name in PEERS[file]])
def test_steps_are_those_recorded(file, name):
    recorded = RECORDED[file]
    params, _, _ = train_compiled(PEERS[file][name], recorded["params"], recorded["grads"])
    assert_close(params, recorded[name], rtol=1e-5, atol=1e-5)
