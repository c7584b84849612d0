"""Optax's names: those of its modules stand in ours of the same name."""

import importlib
import inspect
import subprocess
import sys

import optax
import pytest

import functional_opt as fo

OF_NO_STATE = "AdaptiveGradClip AddDecayedWeights ClipByGlobalNorm Clip ScaleByTrustRatio Scale".split()


@pytest.mark.parametrize("name", OF_NO_STATE)
def test_old_names_of_the_empty_state(name):
    assert getattr(fo, f"{name}State") is fo.EmptyState
    assert getattr(optax, f"{name}State") is optax.EmptyState


@pytest.mark.parametrize("module", ["contrib", "experimental", "schedules", "transforms", "tree"])
def test_every_name_of_a_module_is_there(module):
    theirs, ours = (importlib.import_module(f"{library}.{module}") for library in ("optax", "functional_opt"))
    names = [name for name, x in vars(theirs).items() if not name.startswith("_") and not inspect.ismodule(x)]
    assert [name for name in names if not hasattr(ours, name) or inspect.ismodule(getattr(ours, name))] == []


def test_names_that_only_optax_has():
    missing = {name for name in vars(optax) if not name.startswith("_") and not hasattr(fo, name)}
    assert "l2_loss" in missing
    for name in missing:
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'; .* keep importing it from optax"):
            getattr(fo, name)
    with pytest.raises(AttributeError, match="has no attribute 'adan_w'$") as e:
        getattr(fo, "adan_w")  # noqa: B009
    assert (e.value.name, e.value.obj) == ("adan_w", fo)  # by which Python suggests a name


def test_packages_that_are_imported_when_used():
    code = "import functional_opt as fo, sys; assert 'functional_opt.keras' not in sys.modules; fo.keras.optimizers"
    subprocess.run([sys.executable, "-c", code + "; fo.interop"], check=True)


@pytest.mark.parametrize(
    "name, hint", [("layers", "Keras 3 on JAX"), ("GradientTape", "keras.value_and_grad"), ("x", "")]
)
def test_names_of_keras_that_are_elsewhere(name, hint):
    with pytest.raises(AttributeError, match=f"'functional_opt.keras' has no attribute '{name}'.*{hint}"):
        getattr(fo.keras, name)
