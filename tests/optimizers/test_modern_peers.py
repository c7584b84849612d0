"""APOLLO, Dion and LaProp beside the recorded steps of their authors' or PyTorch's: see `goldens/README.md`."""

import pathlib

import numpy as np
import pytest

import functional_opt as fo

from ..helpers import assert_close, train_compiled

RECORDED = np.load(pathlib.Path(__file__).parent.parent / "goldens" / "modern_peers.npz")


def dion(rank_fraction):
    return fo.dion(0.1, rank_fraction=rank_fraction, weight_decay=0.1)


PEERS = {
    "apollo": fo.apollo(0.1, rank=2, update_proj_gap=4),
    "apollo_mini": fo.apollo_mini(0.01, update_proj_gap=4),
    "dion/1.0": dion(1.0),
    "dion/0.5": dion(0.5),
    "laprop": fo.laprop(0.1),
}


def test_all_that_is_recorded_is_compared():
    assert {*PEERS, "params", "grads"} == set(RECORDED.files)


@pytest.mark.parametrize("name", PEERS)
def test_steps_are_those_recorded(name):
    params, _, _ = train_compiled(PEERS[name], RECORDED["params"], RECORDED["grads"])
    assert_close(params, RECORDED[name], rtol=1e-5, atol=1e-5)
