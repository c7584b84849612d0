"""functional_opt.contrib: Optax's names, arguments and state fields."""

import inspect

import optax
import pytest

import functional_opt as fo

NAMES = [name for name in vars(fo.contrib) if not name.startswith("_")]
STATES = [name for name in NAMES if hasattr(getattr(optax.contrib, name, None), "_fields")]
MORE = {
    "MechanicState": ("delta",),  # which Optax computes, and loses digits by
    "MuonDimensionNumbers": ("reduction_blocks", "output_blocks"),
}
"""Fields that stand behind Optax's."""


@pytest.mark.parametrize("name", NAMES)
def test_names_are_optax_and_stand_at_the_top(name):
    assert hasattr(optax.contrib, name)
    assert getattr(fo, name) is getattr(fo.contrib, name)


@pytest.mark.parametrize("name", STATES)
def test_states_have_optax_fields(name):
    assert getattr(fo.contrib, name)._fields == getattr(optax.contrib, name)._fields + MORE.get(name, ())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in STATES and name != "NormalizeState"])
def test_arguments_are_optax(name):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (fo.contrib, optax.contrib))
    assert list(ours)[: len(theirs)] == list(theirs) or set(theirs) < set(ours)
    for arg, p in theirs.items():
        default = ours[arg].default
        same = default == p.default or default is None or p.default is None
        assert same or arg in ("ns_coeffs", "hessian_diagonal_fn", "clip_value_fn"), (arg, default, p.default)
