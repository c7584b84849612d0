"""Certified resume: N + M steps, and N steps, a checkpoint and M steps, give the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import functional_opt as fo
from functional_opt.interop import orbax
from functional_opt.interop.safetensors import load, save

from ..checkpoint.test_arrays import assert_same_bits
from ..conftest import A_DOZEN
from .cases import CASES, PLAIN, each_case
from .resume import first_half, second_half

ROOT = Path(__file__).parents[2]
ELSEWHERE = CASES if os.environ.get("FUNCTIONAL_OPT_RESUME") == "all" else [c for c in CASES if repr(c) in A_DOZEN]


@each_case
def test_resume(case, tmp_path):
    tx, params, state = first_half(case)
    expected = second_half(case, params, state)
    has_config = fo.to_arrays(tx, params, state)[1]["config"] is not None
    save(tmp_path / "file", tx, params, state)
    same, *saved, _ = load(tmp_path / "file", None if has_config else tx)
    assert same == tx
    assert_same_bits(saved, [params, state])
    assert_same_bits(second_half(case, *saved), expected)
    if case in PLAIN:
        pytest.importorskip("orbax.checkpoint")
        orbax.save(tmp_path / "folder", tx, params, state)
        assert_same_bits(orbax.restore(tmp_path / "folder", tx)[1:3], (params, state))


def test_resume_in_a_new_process(tmp_path):
    """FUNCTIONAL_OPT_RESUME=all: of every case."""
    expected = {}
    for case in ELSEWHERE:
        tx, params, state = first_half(case)
        save(tmp_path / f"{case.name}.before", tx, params, state)
        expected[case] = second_half(case, params, state)
    command = [sys.executable, "-m", "tests.conformance.resume", str(tmp_path)]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    for case in ELSEWHERE:
        assert_same_bits(load(tmp_path / f"{case.name}.after", case.tx())[1:3], expected[case])
