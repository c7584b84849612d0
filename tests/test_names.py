"""Optax's names: those of its modules stand in ours of the same name."""

import importlib
import inspect

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
