"""The examples and the README's code, run as a user would, on less data."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    yield
    for path in (ROOT / "examples").glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_the_main_job(examples, tmp_path):
    pytest.importorskip("sklearn")
    import matplotlib.pyplot as plt
    from rich.console import Console

    plt.switch_backend("Agg")
    import digits

    console = Console(record=True, width=100)
    accuracies, curves = digits.main(epochs=10, out=tmp_path / "new folder" / "digits.png", console=console)
    assert all(accuracy > 0.95 for accuracy in accuracies.values()), accuracies
    np.testing.assert_allclose(curves["functional"], curves["keras script"], rtol=1e-5)
    assert curves["sweep of 8 rates"].shape == (8, 220)
    assert (tmp_path / "new folder" / "digits.png").stat().st_size > 10_000
    rows = re.findall(r"│ (\S.*?)\s+│ [\d.]+%\s+│ [\d.]+\s+│ (\d+)", console.export_text())
    assert [name for name, _ in rows] == list(digits.WAYS)
    assert {compiles for _, compiles in rows} == {"1"}


def test_the_readme():
    """Its blocks run one after the other, as they stand."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert len(blocks) == 5
    names: dict = {}
    exec(blocks[1], names)
    facade_loss = float(names["loss"])
    exec(blocks[0], names)
    assert abs(facade_loss - float(names["loss"])) < 1e-4  # the same Adam but for epsilon
    exec(blocks[2], names)
    assert names["losses"].shape == (8,)
    exec(blocks[3], names)
    assert names["fo"].metrics(names["state"])["step"] == 1
    exec(blocks[4], names)
    assert int(names["opt"].iterations) == 10
