"""Muon, NorMuon and Scion beside the recorded steps of PyTorch's: see `goldens/README.md`."""

import pathlib

import numpy as np
import pytest

import functional_opt as fo

from ..helpers import assert_close, train_compiled

RECORDED = np.load(pathlib.Path(__file__).parent.parent / "goldens" / "muon_peers.npz")


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


PEERS = {
    "torch_muon/original/nesterov": torch_muon(None),
    "torch_muon/match_rms_adamw/nesterov": torch_muon(0.2),
    "torch_muon/original/plain": muon(None),
    "torch_muon/match_rms_adamw/plain": muon(0.2),
    "normuon/match_rms": normuon(0.2),
    "normuon/preserve_norm": normuon(None),
}
for theirs, ours in (("SPECTRAL", "spectral"), ("SIGN", "sign"), ("COL", "per_input"), ("ROW", "per_output")):
    PEERS |= {f"scion/{theirs}/{how}": scion(ours, how == "constrained") for how in ("constrained", "free")}


def test_all_that_is_recorded_is_compared():
    assert {*PEERS, "params", "grads"} == set(RECORDED.files)


@pytest.mark.parametrize("name", PEERS)
def test_steps_are_those_recorded(name):
    params, _, _ = train_compiled(PEERS[name], RECORDED["params"], RECORDED["grads"])
    assert_close(params, RECORDED[name], rtol=1e-5, atol=1e-5)
