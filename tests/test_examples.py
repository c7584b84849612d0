"""The examples and the README's code, run as a user would, on less data."""

import collections
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .helpers import compiled

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


def test_a_failed_run_ends_with_its_error():
    """A thread of the progress bar kept Python 3.13 from exiting."""
    program = "import digits, rich.console; digits.WAYS = {'': (lambda batches: [1 / 0 for _ in batches], '')};"
    program += "digits.main(1, None, rich.console.Console())"
    run = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(run, cwd=ROOT / "examples", timeout=300, capture_output=True, text=True)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr, done.stderr


def test_characters(examples, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt
    from rich.console import Console

    plt.switch_backend("Agg")
    import character_model
    import characters

    monkeypatch.setattr(character_model, "LAYERS", 1)  # compiles in half the time
    assert len(characters.OPTIMIZERS) == 11 and len(characters.PRECISIONS) == 5
    console = Console(record=True, width=120)
    results, precisions = characters.main(tmp_path / "characters.png", console, **characters.QUICK)
    for result in results.values():  # ln 107 = 4.67 is what knows nothing
        assert result.curves.shape == (2, 8) and (result.final < 4.4).all() and len(result.grid) == 2, result
    exact, rounded = precisions["adamw"].values()
    assert rounded.bytes < 2.1 and exact.bytes > 8
    assert 0 < np.abs(rounded.final - exact.final).max() < 0.02
    printed = console.export_text()
    assert len(re.findall(r"Next to AdamW, .*: schedule_free_adamw\.", printed)) == 1, printed
    assert re.search(r"│ 8 bits\s+│ [\d.]+ ± [\d.]+ │ [+-]\S+ ± \S+\s+│ yes", printed), printed
    assert (tmp_path / "characters.png").stat().st_size > 10_000


def test_migrate_from_torch(examples):
    pytest.importorskip("torch")
    import migrate_from_torch

    before, here, there = migrate_from_torch.main()
    assert here < before and abs(here - there) < 1e-4 * there


def test_model_libraries(examples):
    for library in ("sklearn", "flax", "equinox"):
        pytest.importorskip(library)
    import model_libraries

    results = model_libraries.main(epochs=10)
    assert len(results) == 2
    for accuracy, losses in results.values():
        assert accuracy > 0.9 and losses[-1] < 0.2 < 2 < losses[0], (accuracy, losses[0], losses[-1])


def test_the_readme(tmp_path, monkeypatch):
    """Its blocks run one after the other, as they stand."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert len(blocks) == 7
    names: dict = {}
    exec(blocks[1], names)
    facade_loss = float(names["loss"])
    exec(blocks[0], names)
    assert abs(facade_loss - float(names["loss"])) < 1e-4  # the same Adam but for epsilon
    before = float(names["loss"])
    exec(blocks[2], names)
    assert float(names["loss"]) < before
    exec(blocks[3], names)
    assert names["losses"].shape == (8,)
    exec(blocks[4], names)
    assert names["fo"].metrics(names["state"])["step"] == 1
    exec(blocks[5], names)
    assert names["extra"] == {"epoch": 3} and {move.kind for move in names["report"]} == {"kept", "fresh"}
    exec(blocks[6], names)
    assert int(names["opt"].iterations) == 10


def test_two_processes(examples):
    """The losses of two processes are those of one, and each device has its part of the state."""
    pytest.importorskip("rich")
    import distributed

    reports = distributed.main(3, None)
    two, one = reports.values()
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-6)
    np.testing.assert_allclose(two["held out"], one["held out"], rtol=1e-6)
    assert two["state on a device"] == one["state on a device"] < 0.15 * two["state in all"]
    assert {report["compilations"] for report in reports.values()} == {1}


ALGOPERF = {  # the arguments in algoperf/spec.py of version 0.6
    "get_batch_size": "workload_name",
    "init_optimizer_state": "workload model_params model_state hyperparameters rng",
    "update_params": "workload current_param_container current_params_types model_state hyperparameters batch "
    "loss_type optimizer_state eval_results global_step rng train_state",
    "prepare_for_eval": "workload current_param_container current_params_types model_state hyperparameters "
    "loss_type optimizer_state eval_results global_step rng",
    "data_selection": "workload input_queue optimizer_state current_param_container model_state hyperparameters "
    "global_step rng",
}


def test_the_submission_to_algoperf(examples, monkeypatch):
    """With a workload of the interface that AlgoPerf's runner has, called as the runner does."""
    import types

    import jax
    import jax.numpy as jnp

    spec = types.SimpleNamespace(ForwardPassMode=types.SimpleNamespace(TRAIN=0, EVAL=1))
    monkeypatch.setitem(sys.modules, "algoperf", types.SimpleNamespace(spec=spec))
    import algoperf_submission as submission

    for name, arguments in ALGOPERF.items():
        assert list(inspect.signature(getattr(submission, name)).parameters) == arguments.split(), name

    class Workload:
        step_hint, metrics_logger = 60, None

        def model_fn(self, params, batch, model_state, mode, rng, update_batch_norm, dropout_rate):
            assert (mode, update_batch_norm, dropout_rate) == (0, True, 0.1)
            return batch["inputs"] @ params["dense"]["kernel"], {"steps": model_state["steps"] + 1}

        def loss_fn(self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0):
            losses = jnp.sum((label_batch - logits_batch) ** 2, axis=-1)
            return {"summed": losses.sum(), "n_valid_examples": len(losses), "per_example": losses}

    fields = "learning_rate one_minus_beta1 beta2 weight_decay warmup_factor label_smoothing dropout_rate"
    numbers = collections.namedtuple("Hyperparameters", fields)(0.1, 0.1, 0.99, 0.01, 0.05, 0.1, 0.1)
    rng, workload = np.random.default_rng(0), Workload()
    true = rng.normal(size=(4, 2))
    inputs = rng.normal(size=(60, 16, 4)).astype("float32")
    queue = ({"inputs": x, "targets": (x @ true).astype("float32")} for x in inputs)
    params, model_state, key = {"dense": {"kernel": jnp.zeros((4, 2))}}, {"steps": jnp.zeros(())}, jax.random.key(0)
    state = submission.init_optimizer_state(workload, params, model_state, numbers, key)
    before = len(compiled)
    for step in range(60):
        batch = submission.data_selection(workload, queue, state, params, model_state, numbers, step, key)
        state, params, model_state = submission.update_params(
            workload, params, None, model_state, numbers, batch, None, state, [], step, key
        )
    state, params, model_state = submission.prepare_for_eval(
        workload, params, None, model_state, numbers, None, state, [], 60, key
    )
    np.testing.assert_allclose(params["dense"]["kernel"], true, atol=0.1)
    assert int(model_state["steps"]) == 60 and sum("_step" in name for name in compiled[before:]) == 1
    with pytest.raises(ValueError, match="workload_name must be one of criteo1tb, .*, got 'cifar'"):
        submission.get_batch_size("cifar")
