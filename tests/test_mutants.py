"""The mutants fit the library and name tests that exist; `make mutants` runs them."""

import re
from pathlib import Path

import pytest

from .mutants.cases import MUTANTS
from .mutants.mutant import Mutant

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_each_piece_occurs_once_and_each_test_exists(mutant):
    assert mutant.mutated(ROOT) != mutant.path(ROOT).read_text()
    for node in mutant.node_ids:
        file, function, *_ = re.split(r"::|\[", node)
        assert f"def {function}(" in (ROOT / file).read_text()


def test_no_mutant_is_there_twice():
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


def test_a_piece_that_does_not_occur_once_is_named():
    for old in "no such code", "return":
        mutant = Mutant("core/norms.py", old, "", "tests/test_leaves.py::test_safe_sqrt")
        with pytest.raises(ValueError, match=f"core/norms.py: {old} → nothing: `old` must occur once"):
            mutant.mutated(ROOT)
